//! How an eval set is asked and scored: `evals/NAME.toml` beside `evals/NAME.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;

use chandler_evaluator::{ExternalLimits, Normalization, Scorer};
use figment::Figment;
use figment::providers::Serialized;
use figment::value::Value;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::error::{ConfigError, Problem};
use super::keys::{Bounds, Key, section};
use super::layers::{self, Entry};
use super::load::{problem_of, wrong_value};
use super::sections::EvalConfig;

section! {
    /// What an eval set has besides the keys of `[eval]` that say how an answer is written.
    SetKeys in "evals" {
        /// The first so many records of the file; unset takes all.
        samples: Option<usize> = None, Bounds::at_least(1.0);
        /// Only at every so manieth evaluation, and at the first and the last of a job.
        every: usize = 1, Bounds::at_least(1.0);
        /// Answers to each question; beyond 1, pass@k is told too, and `temperature` must be above 0
        /// or `temperature_end` be set.
        attempts: usize = 1, Bounds::between(1.0, 1000.0);
        /// Whether the loss of the records' own answers is taken.
        loss: bool = true;
        /// Whether wrong answers of this set may go into the inbox (`eval.requeue_wrong`).
        requeue_wrong: bool = true;
    }
}

/// The keys of an eval set, but for `scorer`.
pub const EVAL_SET_KEYS: &[Key] = SetKeys::KEYS;

/// Keys of `[eval]` that an eval set may have for itself.
const OF_EVAL: [&str; 17] = [
    "batch_size",
    "frequency_penalty",
    "max_new_tokens",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "system",
    "temperature",
    "temperature_end",
    "temperature_ramp_tokens",
    "top_k",
    "top_p",
    "scorer",
];

/// How the answers of a set are scored.
#[derive(Debug, Clone, PartialEq)]
pub enum SetScorer {
    /// By a rule.
    Rule(Scorer),
    /// No answer is written: the most probable of the record's choices counts.
    Choice(Normalization),
    /// By a program.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
        /// What it may take.
        limits: ExternalLimits,
    },
    /// No answer is written: the loss alone is taken.
    None,
}

impl SetScorer {
    /// The metric that it gives.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::Rule(scorer) => scorer.name(),
            Self::Choice(_) => "choice_accuracy",
            Self::Command { .. } => "command",
            Self::None => "none",
        }
    }
}

/// `scorer` where it is a table of one of the kinds that are not rules.
#[derive(Debug, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
enum Named {
    Choice {
        #[serde(default)]
        normalization: Normalization,
    },
    Command {
        command: Vec<String>,
        #[serde(default)]
        limits: ExternalLimits,
    },
    None {},
}

impl SetScorer {
    /// What decides about a score, as JSON: what a program may take does not.
    fn asked(&self) -> Json {
        match self {
            Self::Rule(scorer) => json!(scorer),
            Self::Choice(normalization) => json!({ "choice": normalization }),
            Self::Command { command, .. } => json!({ "command": command }),
            Self::None => Json::Null,
        }
    }
}

/// An eval set's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSetConfig {
    /// How answers are scored.
    pub scorer: SetScorer,
    /// The keys of sets.
    pub keys: SetKeys,
    /// How answers are written: `[eval]`, with what the set has for itself over it.
    pub eval: EvalConfig,
}

impl EvalSetConfig {
    /// A set without a file of its own.
    pub fn of(defaults: &EvalConfig) -> Self {
        let rule = Scorer::named(&defaults.scorer).unwrap_or_default();
        Self {
            scorer: SetScorer::Rule(rule),
            keys: SetKeys::default(),
            eval: EvalConfig { stop: defaults.stop.clone(), ..defaults.clone() },
        }
    }

    /// What decides about answers and their scores, as JSON: settings that leave both as they are,
    /// such as how many are written side by side, do not stand in it.
    pub(crate) fn asked(&self) -> Json {
        let eval = json!(self.eval);
        let of_eval = OF_EVAL.iter().filter(|key| !["batch_size", "scorer"].contains(key));
        let eval: BTreeMap<&str, &Json> = of_eval.map(|key| (*key, &eval[*key])).collect();
        let SetKeys { samples, attempts, .. } = &self.keys;
        json!({ "eval": eval, "samples": samples, "attempts": attempts, "scorer": self.scorer.asked() })
    }

    /// Reads a set's file over the defaults; all problems are told at once.
    pub fn read(path: &Path, defaults: &EvalConfig) -> Result<Self, ConfigError> {
        let mut set = Self::of(defaults);
        let (mut own, mut of_eval, mut problems) = (vec![], vec![], vec![]);
        for entry in layers::from_file_of(EvalConfig::PATH, path)? {
            let name = entry.path.trim_start_matches("eval.").to_owned();
            let set_key = SetKeys::KEYS.iter().find(|key| key.name == name);
            match (name.as_str(), set_key) {
                ("scorer", _) => match scorer(&entry.value) {
                    Ok(found) => set.scorer = found,
                    Err(what) => problems.push(bad_scorer(what, &entry)),
                },
                (_, Some(key)) => {
                    problems.extend(wrong_value(key, &entry.value, entry.origin.clone()));
                    own.push((name, entry.value));
                }
                (name, None) if OF_EVAL.contains(&name) => {
                    problems.extend(problem_of(&entry));
                    of_eval.push((name.to_owned(), entry.value));
                }
                _ => problems.push(unknown(&name, entry)),
            }
        }
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { problems });
        }
        set.keys = over(&set.keys, own)?;
        set.eval = over(&set.eval, of_eval)?;
        Ok(set)
    }
}

fn over<T: serde::Serialize + for<'a> Deserialize<'a>>(
    defaults: &T,
    entries: Vec<(String, Value)>,
) -> Result<T, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(defaults));
    for (name, value) in entries {
        figment = figment.merge(Serialized::default(&name, &value));
    }
    figment.extract().map_err(|source| ConfigError::Merge { source: Box::new(source) })
}

fn unknown(name: &str, entry: Entry) -> Problem {
    let known = SetKeys::KEYS.iter().map(|key| key.name).chain(OF_EVAL);
    let like = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let nearest = like.filter(|(likeness, _)| *likeness > 0.8);
    let nearest = nearest.max_by(|left, right| left.0.total_cmp(&right.0));
    Problem::UnknownKey {
        key: name.to_owned(),
        origin: entry.origin,
        nearest: nearest.map(|(_, known)| known.to_owned()),
    }
}

fn bad_scorer(what: String, entry: &Entry) -> Problem {
    Problem::Conflict {
        key: "scorer",
        what,
        origin: entry.origin.clone(),
        advice: format!(
            "a scorer is one of {}, choice, command or none; with settings it is a table, such as \
             {{ name = \"numeric\", tolerance = 0.01 }}",
            Scorer::NAMES.join(", ")
        ),
    }
}

/// What a set's `scorer` says.
fn scorer(value: &Value) -> Result<SetScorer, String> {
    let name = match value {
        Value::String(_, name) => name.as_str(),
        Value::Dict(_, table) => table.get("name").and_then(Value::as_str).unwrap_or_default(),
        _ => "",
    };
    let json = serde_json::to_value(value).map_err(|error| error.to_string())?;
    if !["choice", "command", "none"].contains(&name) {
        return serde_json::from_value(json)
            .map(SetScorer::Rule)
            .map_err(|error| format!("cannot be used: {error}"));
    }
    let table = if json.is_string() { json!({ "name": json }) } else { json };
    match serde_json::from_value(table).map_err(|error| format!("cannot be used: {error}"))? {
        Named::Choice { normalization } => Ok(SetScorer::Choice(normalization)),
        Named::Command { command, limits } => Ok(SetScorer::Command { command, limits }),
        Named::None {} => Ok(SetScorer::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<EvalSetConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.toml");
        chandler_durable::write(&path, text.as_bytes()).unwrap();
        let defaults = EvalConfig { max_new_tokens: 99, top_k: Some(7), ..EvalConfig::default() };
        EvalSetConfig::read(&path, &defaults)
            .map_err(|error| format!("{error} | {}", error.hint().unwrap_or_default()))
    }

    #[test]
    fn a_set_has_its_own_settings_over_those_of_all() {
        let set = read("samples = 5\ntemperature = 0.7\nscorer = \"contains\"\n").unwrap();
        assert_eq!((set.keys.samples, set.keys.every), (Some(5), 1));
        assert_eq!((set.eval.temperature, set.eval.max_new_tokens), (0.7, 99));
        assert_eq!((set.eval.top_k, set.scorer.metric()), (Some(7), "contains"));
        assert_eq!(read("").unwrap().scorer.metric(), "exact_match");
    }

    #[test]
    fn what_is_asked_is_the_same_where_answers_and_scores_would_be() {
        let asked = |text: &str| read(text).unwrap().asked();
        let plain = asked("");
        for text in ["batch_size = 3", "every = 5", "loss = false", "requeue_wrong = false"] {
            assert_eq!(asked(text), plain, "{text}");
        }
        for text in [
            "samples = 5",
            "attempts = 2",
            "temperature = 0.5",
            "max_new_tokens = 7",
            "system = \"Be brief.\"",
            "scorer = \"contains\"",
            "scorer = \"choice\"",
            "scorer = \"none\"",
        ] {
            assert_ne!(asked(text), plain, "{text}");
        }
        let program = |limits: &str| {
            asked(&format!("scorer = {{ name = \"command\", command = [\"judge\"]{limits} }}"))
        };
        assert_eq!(program(""), program(", limits = { seconds_per_answer = 3 }"));
    }

    #[test]
    fn scorers_come_as_words_and_as_tables() {
        let metric = |text: &str| read(text).unwrap().scorer.metric();
        assert_eq!(metric("scorer = \"choice\""), "choice_accuracy");
        assert_eq!(metric("scorer = \"none\""), "none");
        assert_eq!(metric("[scorer]\nname = \"numeric\"\ntolerance = 0.5"), "numeric");
        let set = read("scorer = { name = \"choice\", normalization = \"per_token\" }").unwrap();
        assert_eq!(set.scorer, SetScorer::Choice(Normalization::PerToken));
        let set = read("scorer = { name = \"command\", command = [\"judge\", \"-q\"] }").unwrap();
        let SetScorer::Command { command, limits } = set.scorer else { panic!("no command") };
        assert_eq!((command.len(), limits), (2, ExternalLimits::default()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let text = read("\nsample = 5\nevery = 0\n").unwrap_err();
        assert!(text.contains("unknown key `sample`") && text.contains("sums.toml:2"), "{text}");
        assert!(text.contains("did you mean `samples`?"), "{text}");
        assert!(text.contains("every") && text.contains("at least 1"), "{text}");
        assert!(read("eval_steps = 5").unwrap_err().contains("unknown key `eval_steps`"));
        assert!(read("temperature = -1").unwrap_err().contains("at least 0"));
        assert!(read("scorer = \"rogue\"").unwrap_err().contains("rouge_l"));
        assert!(read("scorer = { name = \"command\" }").unwrap_err().contains("command"));
        assert!(read("scorer = 3").unwrap_err().contains("scorer"));
    }
}
