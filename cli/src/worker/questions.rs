//! The questions of an evaluation, made in the child.

use std::path::Path;

use chandler_data::{
    BuildProgress, DataError, DataOptions, Dataset, OnBadLine, Question, SourceLines, TextPipeline,
    split_held_out,
};

use super::child::Beats;
use super::protocol::{HeldOut, QuestionsFrom, SetRead, SetToRead};
use crate::engine::EngineError;

impl QuestionsFrom {
    /// The questions, and whether the model is trained on their rows.
    pub(super) fn questions(
        &self,
        pipeline: &TextPipeline,
        all: &Dataset,
        options: &DataOptions,
        beats: &Beats,
    ) -> Result<(Vec<Question>, bool), EngineError> {
        let system = self.system.as_deref();
        let question = |line: &String| {
            beats.beat(BuildProgress::default());
            ask(pipeline, line, options, system, self.keep_records)
        };
        if let Some(path) = &self.prompts {
            // What is wrong with these is no fault of a training file.
            let of_configuration = |error: DataError| EngineError::Json {
                path: path.clone(),
                expected: "a file of records, one a line (eval.prompts)",
                reason: error.to_string(),
            };
            let lines = self.lines_of(path, options).map_err(of_configuration)?;
            let asked = lines.iter().map(|line| question(line).map_err(of_configuration));
            let mut questions = asked.collect::<Result<Vec<_>, _>>()?;
            questions.retain(|question| !question.prompt_ids.is_empty());
            return Ok((questions, false));
        }
        let (rows, trained) = self.held_out.rows(all);
        let lines = source_lines(pipeline, &rows, self.samples, options, beats)?;
        // What can be learned can nearly always be asked; a row of which that is not so is no
        // reason to refuse its file.
        let tell = |error: &DataError| tracing::warn!("a row is not asked in evaluations: {error}");
        let asked = lines.iter().map(question).filter_map(|asked| asked.inspect_err(tell).ok());
        let mut questions: Vec<Question> = asked.collect();
        questions.retain(|question| !question.prompt_ids.is_empty());
        // A row is cut there; a prompt that is longer would take time without bound.
        questions.retain(|question| question.prompt_ids.len() <= options.max_length);
        Ok((questions, trained))
    }

    fn lines_of(&self, path: &Path, options: &DataOptions) -> Result<Vec<String>, DataError> {
        let lines = SourceLines::open(path, options.max_line_bytes)?.take(self.samples);
        lines.map(|line| Ok(line.map(|(_, text)| text)?)).collect()
    }
}

impl HeldOut {
    /// The rows that are asked, and whether they are trained on.
    fn rows(self, all: &Dataset) -> (Dataset, bool) {
        match self {
            Self::All => (all.clone(), false),
            Self::Share { share, seed } => {
                let (train, held_out) = split_held_out(all.len(), share, seed);
                let trained = held_out.is_empty();
                (all.select(if trained { &train } else { &held_out }), trained)
            }
        }
    }
}

/// The lines that the first rows come from, which must still be those that were tokenized.
fn source_lines(
    pipeline: &TextPipeline,
    rows: &Dataset,
    count: usize,
    options: &DataOptions,
    beats: &Beats,
) -> Result<Vec<String>, EngineError> {
    let first: Vec<usize> = (0..rows.len().min(count)).collect();
    let alive = || beats.beat(BuildProgress::default());
    let lines = rows.source_lines(&first, options.max_line_bytes, &alive)?;
    for (row, line) in first.iter().zip(&lines) {
        let path = rows.source(*row).map_or_else(Default::default, |source| source.0.to_owned());
        let kept = rows.row(*row);
        let kept = kept.map_err(|source| DataError::Read { path: path.clone(), source })?;
        let example = pipeline.example(line, options);
        let same = example.is_ok_and(|example| example.input_ids.starts_with(&kept.input_ids));
        if !same {
            return Err(DataError::Changed { path }.into());
        }
    }
    Ok(lines)
}

impl SetToRead {
    /// Asks every record, and tokenizes it where its loss is wanted too.
    pub(super) fn read(
        &self,
        pipeline: &TextPipeline,
        options: &DataOptions,
        cache_folder: &Path,
        beats: &Beats,
    ) -> Result<SetRead, EngineError> {
        // What is wrong with an eval set is no fault of a training file.
        let of_set = |error: DataError| EngineError::Json {
            path: self.file.clone(),
            expected: "an eval set, a record on each line",
            reason: error.to_string(),
        };
        let rows = self.rows(pipeline, options, cache_folder, beats).map_err(of_set)?;
        let lines = SourceLines::open(&self.file, options.max_line_bytes).map_err(of_set)?;
        let (mut questions, mut last_line) = (vec![], 0);
        for line in lines.take(self.samples.unwrap_or(usize::MAX)) {
            let (number, text) = line.map_err(|error| of_set(error.into()))?;
            beats.beat(BuildProgress::default());
            let asked = ask(pipeline, &text, options, self.system.as_deref(), self.keep_records);
            let at_line = |error: DataError| EngineError::Json {
                path: self.file.clone(),
                expected: "an eval set, a record on each line",
                reason: format!("line {number}: {error}"),
            };
            questions.push(asked.map_err(at_line)?);
            last_line = number;
        }
        let too_long = |question: &Question| {
            question.prompt_ids.is_empty() || question.prompt_ids.len() > options.max_length
        };
        let before = questions.len();
        questions.retain(|question| !too_long(question));
        if questions.len() < before {
            let (name, left_out) = (self.file.display(), before - questions.len());
            tracing::warn!(
                "{name}: {left_out} prompts are empty or longer than data.max_length and are not \
                 asked"
            );
        }
        let sha256 = rows.as_ref().and_then(|rows| rows.file_hashes().first().cloned());
        let sha256 = match sha256 {
            Some(sha256) => sha256,
            None => chandler_data::file_sha256(&self.file).map_err(of_set)?,
        };
        let cache_file = rows.map(|rows| rows.cache_file().to_owned());
        Ok(SetRead { questions, last_line, cache_file, sha256 })
    }

    /// The records' own tokens. What is a question alone has none, and where that goes for every
    /// record of the set, there is no loss to take. Whether a line can be asked is seen where it is.
    fn rows(
        &self,
        pipeline: &TextPipeline,
        options: &DataOptions,
        cache_folder: &Path,
        beats: &Beats,
    ) -> Result<Option<Dataset>, DataError> {
        if !self.tokens {
            return Ok(None);
        }
        let alive = |now| beats.beat(now);
        let on_bad_line = OnBadLine::Skip;
        let options = DataOptions { packing: None, on_bad_line, ..options.clone() };
        let files = std::slice::from_ref(&self.file);
        match Dataset::open(files, pipeline, &options, cache_folder, &alive) {
            Ok(rows) => Ok(Some(rows)),
            Err(DataError::BadLines { .. } | DataError::NothingToLearn { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn ask(
    pipeline: &TextPipeline,
    line: &str,
    options: &DataOptions,
    system: Option<&str>,
    keep_record: bool,
) -> Result<Question, DataError> {
    let question = pipeline.question(line, options.vocab_size, system)?;
    // A record is kept to be trained on, which not every question can be.
    let kept = keep_record && pipeline.example(line, options).is_ok();
    Ok(Question { record: kept.then(|| line.to_owned()), ..question })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &str = r#"{"question": "The sky is", "reference": "blue"}"#;
    const RECORD: &str = r#"{"prompt": "1 + 1 =", "completion": " 2"}"#;
    const CHOICE: &str = r#"{"question": "The sky is", "choices": ["x", "y"], "answer": 1}"#;

    fn pipeline() -> TextPipeline {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/goldens/models/qwen3");
        TextPipeline::open(Path::new(folder)).unwrap()
    }

    fn read(lines: &[&str], samples: Option<usize>) -> (SetRead, Vec<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("set.jsonl");
        let text: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
        chandler_durable::write(&file, text.as_bytes()).unwrap();
        let (system, tokens, keep_records) = (None, true, true);
        let set = SetToRead { file: file.clone(), samples, system, tokens, keep_records };
        let options = DataOptions::default();
        let read = set.read(&pipeline(), &options, folder.path(), &Beats::default()).unwrap();
        let rows = read.cache_file.as_ref().map(|cache| Dataset::reopen(cache, &[file]).unwrap());
        let of = |rows: &Dataset| (0..rows.len()).map(|row| rows.source(row).unwrap().1).collect();
        let sources = rows.as_ref().map_or_else(Vec::new, of);
        (read, sources)
    }

    #[test]
    fn a_set_has_the_loss_of_the_records_that_have_one() {
        let (set, rows) = read(&[QUESTION, RECORD, CHOICE, RECORD], None);
        assert_eq!((set.questions.len(), set.last_line, rows), (4, 4, vec![2, 4]));
        let (set, rows) = read(&[QUESTION, CHOICE], None);
        assert_eq!((set.questions.len(), rows, set.cache_file), (2, vec![], None));
        assert!(!set.sha256.is_empty());
        let (set, _) = read(&[QUESTION, RECORD, RECORD], Some(2));
        assert_eq!((set.questions.len(), set.last_line), (2, 2));
    }

    #[test]
    fn only_what_training_can_read_is_kept_for_it() {
        let (set, _) = read(&[QUESTION, RECORD, CHOICE], None);
        let kept: Vec<_> =
            set.questions.iter().map(|question| question.record.as_deref()).collect();
        assert_eq!(kept, [None, Some(RECORD), None]);
    }
}
