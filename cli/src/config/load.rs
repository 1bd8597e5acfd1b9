//! Layers in, one checked configuration out, with the origin of each value.

use chandler_vram::Bytes;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use figment::Figment;
use figment::providers::Serialized;
use figment::value::Value;

use super::choices::LrSchedulerType;
use super::error::{ConfigError, Origin, Problem};
use super::keys::{Key, Kind};
use super::layers::{self, Entry, FlagValue};
use super::sections::{Config, SECTIONS, key, keys};
use super::values::Place;
use super::webhooks;

/// Where values may come from, besides the defaults. Later fields win over earlier ones.
#[derive(Debug, Clone, Default)]
pub struct ConfigSources {
    /// `chandler.toml`, where there is one.
    pub file: Option<PathBuf>,
    /// Environment variables; only those named `CHANDLER_*` count.
    pub env: Vec<(String, String)>,
    /// Flags that stand for keys.
    pub flags: Vec<FlagValue>,
    /// The arguments of `--set`.
    pub set: Vec<String>,
}

/// A configuration and where each of its values came from.
#[derive(Debug, Clone)]
pub struct ResolvedConfig {
    /// The values.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

impl ResolvedConfig {
    /// Puts the layers together and checks every value; all problems are reported at once.
    pub fn load(sources: &ConfigSources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut entries = match &sources.file {
            Some(path) => layers::from_file(path)?,
            None => Vec::new(),
        };
        entries.extend(layers::from_env(&sources.env));
        entries.extend(layers::from_flags(&sources.flags));
        entries.extend(layers::from_set(&sources.set, &mut problems));
        problems.extend(entries.iter().filter_map(problem_of));
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { problems });
        }
        let resolved = Self::merge(entries)?;
        let problems = resolved.conflicts();
        if problems.is_empty() { Ok(resolved) } else { Err(ConfigError::Invalid { problems }) }
    }

    fn merge(entries: Vec<Entry>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        let mut origins = BTreeMap::new();
        for entry in entries {
            figment = figment.merge(Serialized::default(&entry.path, &entry.value));
            origins.insert(entry.path, entry.origin);
        }
        let config =
            figment.extract().map_err(|source| ConfigError::Merge { source: Box::new(source) })?;
        Ok(Self { config, origins })
    }

    /// Where the value of a key came from.
    pub fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or_default()
    }

    /// Every key with its value and origin, in the order of the reference.
    pub fn values(&self) -> Vec<(&'static Key, serde_json::Value, Origin)> {
        let all = serde_json::to_value(&self.config).unwrap_or(serde_json::Value::Null);
        keys()
            .map(|key| {
                let path = key.path();
                let pointer = format!("/{}", path.replace('.', "/"));
                let value = all.pointer(&pointer).cloned().unwrap_or(serde_json::Value::Null);
                (key, value, self.origin(&path))
            })
            .collect()
    }

    /// Values that are each within bounds and yet do not go together.
    fn conflicts(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let train = &self.config.train;
        let kwargs = &train.lr_scheduler_kwargs;
        let mut conflict = |key: &'static str, what: String, advice: &str| {
            let origin = self.origin(key);
            problems.push(Problem::Conflict { key, what, origin, advice: advice.to_owned() });
        };
        if train.max_steps == 0 {
            conflict(
                "train.max_steps",
                "is 0, expected -1 or at least 1".into(),
                "-1 goes by train.num_train_epochs",
            );
        }
        let least = Bytes(64 << 20);
        if self.config.limits.worker_memory.bytes().is_some_and(|bytes| bytes < least.0) {
            conflict(
                "limits.worker_memory",
                format!("is {}, expected at least {least}", self.config.limits.worker_memory.0),
                "a tokenizer alone takes tens of mebibytes",
            );
        }
        match train.lr_scheduler_type {
            LrSchedulerType::CosineWithMinLr
                if kwargs.min_lr.is_some() == kwargs.min_lr_rate.is_some() =>
            {
                conflict(
                    "train.lr_scheduler_type",
                    "cosine_with_min_lr wants one floor, and exactly one".into(),
                    "set either train.lr_scheduler_kwargs.min_lr or .min_lr_rate",
                );
            }
            LrSchedulerType::WarmupStableDecay if kwargs.num_decay_steps.is_none() => {
                conflict(
                    "train.lr_scheduler_type",
                    "warmup_stable_decay does not say how long the decay is".into(),
                    "set train.lr_scheduler_kwargs.num_decay_steps",
                );
            }
            _ => {}
        }
        if let Err(error) = chandler_evaluator::Scorer::named(&self.config.eval.scorer) {
            conflict(
                "eval.scorer",
                format!("is no scorer: {error}"),
                "a set in evals/ may have one with settings of its own",
            );
        }
        let address = &self.config.http.address;
        if address.parse::<IpAddr>().is_err() {
            conflict(
                "http.address",
                format!("is \"{address}\", not an address"),
                "127.0.0.1 is for this machine alone, 0.0.0.0 for all that reach it",
            );
        }
        if let Some(min_lr) = kwargs.min_lr
            && min_lr > train.learning_rate
        {
            conflict(
                "train.lr_scheduler_kwargs.min_lr",
                format!("is {min_lr}, above the peak rate {}", train.learning_rate),
                "lower it, or raise train.learning_rate",
            );
        }
        problems
    }
}

pub(super) fn problem_of(entry: &Entry) -> Option<Problem> {
    let origin = entry.origin.clone();
    if SECTIONS.iter().any(|section| section.path == entry.path) {
        return Some(Problem::SectionAsKey { section: entry.path.clone(), origin });
    }
    match key(&entry.path) {
        None => Some(Problem::UnknownKey {
            key: entry.path.clone(),
            origin,
            nearest: nearest(&entry.path),
        }),
        Some(key) => wrong_value(key, &entry.value, origin),
    }
}

/// The key most like `written`, if one is like it: compared by its last part first, so that a key
/// in the wrong section is found too.
fn nearest(written: &str) -> Option<String> {
    let name = written.rsplit('.').next().unwrap_or(written);
    keys()
        .map(|key| {
            let path = key.path();
            let whole = strsim::jaro_winkler(written, &path);
            let last = strsim::jaro_winkler(name, key.name);
            let section_agrees = if written.starts_with(key.section) { 0.02 } else { 0.0 };
            (whole.max(last) + section_agrees, path)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, path)| path)
}

pub(super) fn wrong_value(key: &Key, value: &Value, origin: Origin) -> Option<Problem> {
    if key.optional && matches!(value, Value::Empty(..)) {
        return None;
    }
    if let (Kind::Choice(words), Value::String(_, word)) = (key.kind, value) {
        return (!words.contains(&word.as_str())).then(|| Problem::NotAChoice {
            key: key.path(),
            value: word.clone(),
            origin,
            expected: key.expected(),
            nearest: nearest_word(word, words),
        });
    }
    if key.kind == Kind::Webhooks {
        let found = webhooks::complaint(value)?;
        return Some(Problem::WrongType {
            key: key.path(),
            origin,
            expected: key.expected(),
            found,
        });
    }
    if !accepts(key.kind, value) {
        return Some(Problem::WrongType {
            key: key.path(),
            origin,
            expected: key.expected(),
            found: found(value),
        });
    }
    let number = numeric(value)?;
    let floor_ok = key.kind != Kind::Integer { signed: false } || number >= 0.0;
    (!floor_ok || !key.bounds.contain(number)).then(|| Problem::OutOfRange {
        key: key.path(),
        value: shown(value),
        origin,
        expected: key.expected(),
    })
}

fn nearest_word(word: &str, words: &[&str]) -> Option<String> {
    words
        .iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate.to_owned())
}

fn accepts(kind: Kind, value: &Value) -> bool {
    let list_of_texts = |value: &Value| {
        value.as_array().is_some_and(|items| items.iter().all(|item| item.as_str().is_some()))
    };
    match kind {
        Kind::Bool => matches!(value, Value::Bool(..)),
        Kind::Integer { .. } => value.to_i128().is_some_and(|number| i64::try_from(number).is_ok()),
        Kind::Number => numeric(value).is_some(),
        Kind::Text | Kind::Path | Kind::ModelPath | Kind::Choice(_) => value.as_str().is_some(),
        Kind::Device => value.as_str().is_some_and(|text| Place::from_text(text).is_some()),
        Kind::Size => value.as_str().is_some_and(|text| text.parse::<Bytes>().is_ok()),
        Kind::List => list_of_texts(value),
        Kind::Webhooks => webhooks::complaint(value).is_none(),
        Kind::ListOr(words) => {
            list_of_texts(value) || value.as_str().is_some_and(|word| words.contains(&word))
        }
    }
}

fn numeric(value: &Value) -> Option<f64> {
    match value {
        Value::Num(..) => value.to_f64().or_else(|| value.to_i128().map(|number| number as f64)),
        _ => None,
    }
}

fn shown(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| found(value))
}

fn found(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("the text \"{text}\""),
        Value::Char(_, letter) => format!("the text \"{letter}\""),
        Value::Bool(_, flag) => format!("{flag}"),
        Value::Num(..) => format!("the number {}", shown(value)),
        Value::Empty(..) => "unset".to_owned(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::choices::TargetModules;

    fn with_set(arguments: &[&str]) -> Result<ResolvedConfig, ConfigError> {
        ResolvedConfig::load(&ConfigSources {
            set: arguments.iter().map(ToString::to_string).collect(),
            ..ConfigSources::default()
        })
    }

    fn refused(arguments: &[&str]) -> String {
        let error = with_set(arguments).unwrap_err();
        format!("{error} | {}", error.hint().unwrap_or_default())
    }

    #[test]
    fn later_layers_win_and_origins_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chandler.toml");
        let mut file = std::fs::File::create(&path).unwrap();
        writeln!(file, "[train]\nlearning_rate = 1e-4\nseed = 7\nwarmup_steps = 1\n").unwrap();
        writeln!(file, "[lora]\ntarget_modules = [\"q_proj\"]").unwrap();
        writeln!(file, "[eval]\nprompts = \"p.jsonl\"\ntop_k = 5").unwrap();
        let resolved = ResolvedConfig::load(&ConfigSources {
            file: Some(path.clone()),
            env: vec![("CHANDLER_TRAIN_SEED".into(), "8".into())],
            flags: vec![FlagValue { flag: "--model", key: "model.path", value: "m".into() }],
            set: vec!["train.warmup_steps=3".into(), "eval.top_k=none".into()],
        })
        .unwrap();
        let config = &resolved.config;
        assert_eq!((config.train.learning_rate, config.train.seed), (1e-4, 8));
        assert_eq!(config.train.warmup_steps, 3);
        assert_eq!(config.model.path.as_ref().unwrap().0, "m");
        assert_eq!(config.lora.target_modules, TargetModules::Names(vec!["q_proj".into()]));
        assert_eq!(config.eval.prompts, Some(folder.path().join("p.jsonl")));
        assert_eq!(config.eval.top_k, None);
        assert_eq!(resolved.origin("train.learning_rate"), Origin::File { path, line: 2 });
        assert_eq!(
            resolved.origin("train.seed"),
            Origin::Env { name: "CHANDLER_TRAIN_SEED".into() }
        );
        assert_eq!(resolved.origin("train.warmup_steps"), Origin::Set);
        assert_eq!(resolved.origin("train.adam_beta1"), Origin::Default);
    }

    #[test]
    fn the_nearest_key_is_named() {
        let text = refused(&["train.learningrate=1"]);
        assert!(text.contains("unknown key `train.learningrate` (--set)"), "{text}");
        assert!(text.contains("did you mean `train.learning_rate`?"), "{text}");
        assert!(refused(&["data.learning_rate=1"]).contains("`train.learning_rate`"));
        assert!(refused(&["train.max_length=9"]).contains("`data.max_length`"));
        assert!(refused(&["zzz.qqq=9"]).contains("config reference"));
    }

    #[test]
    fn wrong_types_bounds_and_words_are_told_apart() {
        let text = refused(&["train.learning_rate=fast"]);
        assert!(
            text.contains("is the text \"fast\", expected number, at least 0 (--set)"),
            "{text}"
        );
        let text = refused(&["data.eval_split=1"]);
        assert!(
            text.contains("`data.eval_split` is 1, expected number, at least 0 and less than 1")
        );
        assert!(refused(&["train.save_steps=-3"]).contains("expected integer from 0"));
        assert!(refused(&["train.save_steps=1.5"]).contains("the number 1.5, expected integer"));
        assert!(refused(&["train.lr_scheduler_type=cosin"]).contains("did you mean \"cosine\"?"));
        assert!(refused(&["train=3"]).contains("is a section"));
        assert!(refused(&["train.seed"]).contains("section.key=value"));
        assert!(refused(&["train.learning_rate=inf"]).contains("learning_rate"));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = refused(&["train.sed=1", "train.seed=x"]);
        assert!(text.contains("train.sed") && text.contains("\"x\""), "{text}");
    }

    #[test]
    fn schedules_want_their_settings() {
        assert!(refused(&["train.lr_scheduler_type=wsd"]).contains("num_decay_steps"));
        assert!(refused(&["train.lr_scheduler_type=cosine_with_min_lr"]).contains("min_lr"));
        let wsd = with_set(&[
            "train.lr_scheduler_type=wsd",
            "train.lr_scheduler_kwargs.num_decay_steps=10",
        ])
        .unwrap();
        assert_eq!(wsd.config.train.lr_scheduler_type, LrSchedulerType::WarmupStableDecay);
        assert!(refused(&["train.max_steps=0"]).contains("-1"));
    }

    #[test]
    fn an_address_is_one() {
        assert!(refused(&["http.address=localhost"]).contains("127.0.0.1 is for this machine"));
        let config = with_set(&["http.address=::1", "http.port=0"]).unwrap().config;
        assert_eq!((config.http.address.as_str(), config.http.port), ("::1", 0));
    }
}
