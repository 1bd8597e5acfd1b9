//! The sets of an evaluation: the job's own questions, and the files in `evals/`.

use std::path::{Path, PathBuf};

use chandler_data::{Dataset, Question, file_sha256 as file_sha256_of};
use chandler_evaluator::GenerateOptions;
use chandler_model::CausalLm;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::EngineError;
use super::guard::bytes_of_answers;
use super::reading::Reader;
use super::settings::generate_options;
use crate::config::{Config, EvalSetConfig, SetScorer};
use crate::failure::in_one_line;
use crate::store::{HELD_OUT, OWN_SETS, PROMPTS, TRAINING};
use crate::visible::visible_line;
use crate::worker::{SetRead, SetToRead};

/// Questions and rows that belong together, and how they are asked and scored.
pub(crate) struct EvalSet {
    pub(crate) name: String,
    /// The same where the same is asked in the same way.
    pub(crate) asked: String,
    /// The same where the loss of the same rows is taken.
    pub(crate) asked_of_rows: String,
    /// Whether it is the job's own.
    pub(crate) is_own: bool,
    pub(crate) questions: Vec<Question>,
    /// Whether the model is trained on the questions' rows, so that a match proves nothing.
    pub(crate) questions_are_trained: bool,
    /// Rows whose loss is taken.
    pub(crate) rows: Option<Dataset>,
    pub(crate) scorer: SetScorer,
    pub(crate) options: GenerateOptions,
    pub(crate) stop_strings: Vec<String>,
    /// Answers to each question.
    pub(crate) attempts: usize,
    /// Only every so manieth evaluation.
    pub(crate) every: u64,
    /// Where a program that scores works: the folder that the set lies in.
    pub(crate) folder: Option<PathBuf>,
}

impl EvalSet {
    /// The job's own set.
    pub(crate) fn own(
        config: &Config,
        questions: Vec<Question>,
        questions_are_trained: bool,
        rows: Option<Dataset>,
        stop_ids: Vec<u32>,
        file_sha256: &str,
    ) -> Result<Self, EngineError> {
        let settings = EvalSetConfig::of(&config.eval);
        let name = match (questions_are_trained, &config.eval.prompts) {
            (true, _) => TRAINING,
            (false, Some(_)) => PROMPTS,
            (false, None) => HELD_OUT,
        };
        let options = generate_options(&settings.eval, stop_ids);
        let (data, samples) = (&config.data, config.eval.samples);
        // Which rows are held out, and so which of them are asked.
        let of_rows = json!([file_sha256, data.eval_split, data.seed]);
        let of_questions = match &config.eval.prompts {
            Some(prompts) if !questions_are_trained => json!([file_sha256_of(prompts)?, samples]),
            _ => json!([of_rows, samples]),
        };
        let asked_of_rows = asked(name, &of_rows, &settings, config);
        let asked = asked(name, &of_questions, &settings, config);
        Ok(Self {
            is_own: true,
            questions_are_trained,
            asked_of_rows,
            ..Self::new(name.to_owned(), asked, settings, questions, rows, options)
        })
    }

    fn new(
        name: String,
        asked: String,
        settings: EvalSetConfig,
        questions: Vec<Question>,
        rows: Option<Dataset>,
        options: GenerateOptions,
    ) -> Self {
        Self {
            name,
            asked_of_rows: asked.clone(),
            asked,
            is_own: false,
            questions,
            questions_are_trained: false,
            rows,
            scorer: settings.scorer,
            options,
            stop_strings: settings.eval.stop,
            attempts: settings.keys.attempts,
            every: settings.keys.every as u64,
            folder: None,
        }
    }

    /// The same with answers that end at these tokens.
    pub(crate) fn ended_by(mut self, stop_ids: Vec<u32>) -> Self {
        self.options.stop_ids = stop_ids;
        self
    }

    /// Whether answers are written, which takes a KV cache.
    pub(crate) fn writes_answers(&self) -> bool {
        let writes = matches!(self.scorer, SetScorer::Rule(_) | SetScorer::Command { .. });
        writes && !self.questions.is_empty()
    }

    /// Whether anything comes of it that can be compared.
    pub(crate) fn is_measured(&self) -> bool {
        self.rows.is_some() || !matches!(self.scorer, SetScorer::None)
    }

    /// Prompts of one pass: every question, as often as it is asked.
    pub(crate) fn prompts(&self) -> usize {
        self.questions.len() * self.attempts.max(1)
    }

    /// Tokens of the longest prompt.
    pub(crate) fn longest_prompt(&self) -> usize {
        self.questions.iter().map(|question| question.prompt_ids.len()).max().unwrap_or(0)
    }

    /// Tokens of the longest row whose loss is taken, choices included.
    pub(crate) fn longest_row(&self) -> usize {
        let rows = self.rows.iter();
        let rows = rows.flat_map(|rows| (0..rows.len()).map(|row| rows.row_length(row)));
        let chooses = matches!(self.scorer, SetScorer::Choice(_));
        let choices = self.questions.iter().filter_map(|question| question.choices.as_ref());
        let choices = choices.flat_map(|choices| &choices.each).filter(|_| chooses);
        rows.chain(choices.map(|choice| choice.input_ids.len())).max().unwrap_or(0)
    }

    /// Bytes of the largest cache that answering the questions so takes, and of its logits.
    pub(crate) fn bytes_needed(&self, model: &CausalLm, options: &GenerateOptions) -> u64 {
        if !self.writes_answers() {
            return 0;
        }
        bytes_of_answers(model, self.prompts(), self.longest_prompt(), options)
    }
}

/// A hash of what is asked and how. Whoever gives settings that decide about no answer other values
/// goes on with the same comparisons.
fn asked(name: &str, content: &Json, settings: &EvalSetConfig, config: &Config) -> String {
    let data = &config.data;
    let how = json!({
        "name": name,
        "content": content,
        "settings": settings.asked(),
        "max_length": data.max_length,
        "loss_on": data.loss_on,
    });
    let hash = Sha256::digest(how.to_string().as_bytes());
    hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads every set in `folder`, in the order of their names. A set that cannot be used is left
/// out, and said: it keeps nobody from training.
pub(crate) fn read_sets(
    folder: &Path,
    config: &Config,
    reader: &Reader,
    cache_folder: &Path,
    stop_ids: &[u32],
) -> Result<Vec<EvalSet>, EngineError> {
    let mut sets = vec![];
    for file in files(folder) {
        let name = visible_line(&file.file_stem().unwrap_or_default().to_string_lossy());
        if OWN_SETS.contains(&name.as_str()) {
            tracing::warn!("eval set {name} is left out: that name is taken; rename the file");
            continue;
        }
        match read_set(&name, &file, config, reader, cache_folder, stop_ids) {
            Ok(set) => sets.push(set),
            Err(error) if error.is_a_stop() => return Err(error),
            Err(error) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!("; hint: {hint}"));
                tracing::warn!("eval set {name} is left out: {}{hint}", in_one_line(&error));
            }
        }
    }
    Ok(sets)
}

/// The sets' files. A folder that cannot be read has none, which is said.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return vec![],
        Err(error) => {
            let folder = folder.display();
            tracing::warn!("no eval set is asked: {folder} cannot be read: {error}");
            return vec![];
        }
    };
    let is_set = |path: &PathBuf| {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        !hidden && path.extension().is_some_and(|extension| extension == "jsonl")
    };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_set).collect();
    files.sort();
    files
}

/// Reads one set.
pub(crate) fn read_set(
    name: &str,
    file: &Path,
    config: &Config,
    reader: &Reader,
    cache_folder: &Path,
    stop_ids: &[u32],
) -> Result<EvalSet, EngineError> {
    let settings_file = file.with_extension("toml");
    let settings = if chandler_durable::is_there(&settings_file)? {
        EvalSetConfig::read(&settings_file, &config.eval).map_err(Box::new)?
    } else {
        EvalSetConfig::of(&config.eval)
    };
    let unusable = |reason: &str| EngineError::Json {
        path: file.to_owned(),
        expected: "an eval set",
        reason: reason.to_owned(),
    };
    let is_greedy = settings.eval.temperature <= 0.0 && settings.eval.temperature_end.is_none();
    if settings.keys.attempts > 1 && is_greedy {
        return Err(unusable("attempts above 1 and temperature 0 give the same answer every time"));
    }
    let options = super::data_options(config, reader.vocab_size);
    let chooses = matches!(settings.scorer, SetScorer::Choice(_));
    let to_read = SetToRead {
        file: file.to_owned(),
        samples: settings.keys.samples,
        system: settings.eval.system.clone(),
        tokens: settings.keys.loss,
        keep_records: config.eval.requeue_wrong && settings.keys.requeue_wrong,
    };
    let SetRead { questions, last_line, cache_file, sha256 } =
        reader.read_set(to_read, &options, cache_folder)?;
    if chooses && questions.iter().any(|question| question.choices.is_none()) {
        return Err(unusable("its scorer is choice, and a record has no choices"));
    }
    let files = [file.to_owned()];
    let rows = cache_file.map(|cache| Dataset::reopen(&cache, &files)).transpose()?;
    let rows = rows.map(|rows| {
        let is_asked = |row: &usize| rows.source(*row).is_some_and(|(_, line)| line <= last_line);
        rows.select(&(0..rows.len()).filter(is_asked).collect::<Vec<_>>())
    });
    let asked = asked(name, &json!(sha256), &settings, config);
    let generate = generate_options(&settings.eval, stop_ids.to_vec());
    let set = EvalSet::new(name.to_owned(), asked, settings, questions, rows, generate);
    Ok(EvalSet { folder: file.parent().map(Path::to_owned), ..set })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_goes_by_the_prompts_file_and_not_by_the_training_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let own = |config: &Config, trained: bool, file: &str| {
            let set = EvalSet::own(config, vec![], trained, None, vec![], file).unwrap();
            (set.asked, set.asked_of_rows)
        };
        let held_out = own(&config, false, "a");
        assert_ne!(own(&config, false, "b").0, held_out.0);
        assert_ne!(own(&config, true, "a").0, held_out.0);
        config.data.max_length += 1;
        assert_ne!(own(&config, false, "a"), held_out);

        let prompts = folder.path().join("prompts.jsonl");
        chandler_durable::write(&prompts, b"{}").unwrap();
        config.eval.prompts = Some(prompts.clone());
        let (asked, of_rows) = own(&config, false, "a");
        let other_file = own(&config, false, "b");
        assert_eq!(other_file.0, asked);
        assert_ne!(other_file.1, of_rows, "its loss is that of other rows");
        config.eval.batch_size += 1;
        assert_eq!(own(&config, false, "a").0, asked);
        chandler_durable::write(&prompts, b"{ }").unwrap();
        assert_ne!(own(&config, false, "a").0, asked);
    }

    #[test]
    fn a_folder_that_cannot_be_read_has_no_sets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evals");
        chandler_durable::write(&file, b"").unwrap();
        assert!(files(&file).is_empty() && files(&folder.path().join("none")).is_empty());
        for name in ["b.jsonl", "a.jsonl", ".c.jsonl", "a.toml"] {
            chandler_durable::write(&folder.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = files(folder.path());
        assert_eq!(names, ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name)));
    }
}
