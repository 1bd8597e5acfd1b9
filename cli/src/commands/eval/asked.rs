//! One model and what it is asked.

use std::path::Path;

use chandler_data::Tokenizer;
use chandler_model::ModelConfig;
use chandler_vram::Ledger;

use super::EvalArgs;
use crate::config::Config;
use crate::engine::{
    EngineError, EvalSet, Evaluated, Evaluator, Reader, data_options, gain_over, load_model,
    model_folder, questions_from, read_set, read_sets, stop_ids,
};
use crate::failure::Failure;
use crate::logging::Progress;
use crate::store::OWN_SETS;
use crate::worker::HeldOut;

/// A model that is evaluated.
pub(super) struct Examinee<'a> {
    pub(super) config: Config,
    pub(super) adapter: Option<&'a Path>,
}

/// What came of it.
pub(super) struct Examined {
    /// What the model is called.
    pub(super) model: String,
    /// Rows whose loss was taken, where they are no eval set.
    pub(super) rows: Option<usize>,
    pub(super) evaluated: Evaluated,
}

/// Evaluates a model.
pub(super) fn examine(
    examinee: &Examinee,
    args: &EvalArgs,
    progress: &Progress,
) -> Result<Examined, Failure> {
    let Examinee { config, adapter } = examinee;
    let folder = model_folder(config, progress)?;
    let shape = ModelConfig::read(&folder).map_err(EngineError::from)?;
    let cache = tempfile::tempdir()
        .map_err(|source| EngineError::Read { path: std::env::temp_dir(), source })?;
    let asking = Asking { config, folder: &folder, shape: &shape, cache: cache.path(), progress };
    let read = asking.read(args)?;
    let model = load_model(config, &folder, *adapter, progress)?;
    let stops = stop_ids(&folder, &model, &read.tokenizer)?;
    let sets: Vec<EvalSet> = read.sets.into_iter().map(|set| set.ended_by(stops.clone())).collect();
    let (step, ledger, tokenizer) = (0, &Ledger::new(), &read.tokenizer);
    let evaluator = Evaluator { step, model: &model, tokenizer, ledger, stop: &|| false, progress };
    let due: Vec<_> = sets.iter().map(|set| (set, Some(set.options.clone()))).collect();
    let evaluated = evaluator.run(&due)?;
    progress.end();
    for words in evaluated.shortages.iter().chain(&evaluated.troubles) {
        tracing::warn!("{words}");
    }
    let name = config.model.path.as_ref().map_or_else(String::new, |path| path.0.clone());
    let model = match adapter {
        Some(adapter) => format!("{name} with {}", adapter.display()),
        None => name,
    };
    Ok(Examined { model, rows: read.rows, evaluated })
}

impl Examined {
    /// Fills in how much each score differs from another model's.
    pub(super) fn hold_against(&mut self, other: &Self) {
        let Evaluated { row, samples, .. } = &mut self.evaluated;
        let Evaluated { row: row_of_other, samples: of_other, .. } = &other.evaluated;
        for score in &mut row.scores {
            let same = |other: &&crate::store::ScoreRow| {
                (&other.set, &other.metric) == (&score.set, &score.metric)
            };
            let Some(base) = row_of_other.scores.iter().find(same) else { continue };
            score.base = Some(base.value);
            gain_over(score, samples, of_other);
        }
    }
}

/// What is asked, read.
struct Read {
    sets: Vec<EvalSet>,
    tokenizer: Tokenizer,
    rows: Option<usize>,
}

struct Asking<'a> {
    config: &'a Config,
    folder: &'a Path,
    shape: &'a ModelConfig,
    cache: &'a Path,
    progress: &'a Progress,
}

impl Asking<'_> {
    fn read(&self, args: &EvalArgs) -> Result<Read, EngineError> {
        let mut options = data_options(self.config, Some(self.shape.vocab_size));
        options.packing = None;
        let reader = Reader {
            vocab_size: options.vocab_size,
            ..Reader::new(self.config, self.folder, self.progress)
        };
        let (mut sets, mut tokenizer, mut rows) = (vec![], None, None);
        if let Some(file) = &args.data {
            if chandler_durable::is_there(&file.with_extension("toml"))? {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                // What would pass for the figures of mere records is called by its whole name.
                let is_taken = OWN_SETS.contains(&&*stem);
                let name = if is_taken { format!("{stem}.jsonl") } else { stem.into_owned() };
                sets.push(read_set(&name, file, self.config, &reader, self.cache, &[])?);
            } else {
                let questions = questions_from(self.config, HeldOut::All);
                let files = std::slice::from_ref(file);
                let text = reader.tokenize(files, None, &options, self.cache, Some(questions))?;
                rows = Some(text.rows.len());
                let (asked, trained) = (text.questions, text.questions_are_trained);
                sets.push(EvalSet::own(self.config, asked, trained, Some(text.rows), vec![], "")?);
                tokenizer = Some(text.tokenizer.wait()?);
            }
        }
        if let Some(folder) = &args.evals {
            sets.extend(read_sets(folder, self.config, &reader, self.cache, &[])?);
        }
        if sets.is_empty() {
            return Err(EngineError::NoSets(args.evals.clone().unwrap_or_default()));
        }
        // A worker has used it without harm.
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::open(self.folder)?,
        };
        Ok(Read { sets, tokenizer, rows })
    }
}
