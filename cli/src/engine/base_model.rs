//! What the base model, which everything in a state directory descends from, scores in the eval sets.
//!
//! Where a job begins with it, its evaluation at step 0 says so. A set that comes later, or changes, is
//! put to it before the next job, once.

use chandler_data::{Tokenizer, file_sha256};
use chandler_model::{CausalLm, ModelConfig};
use chandler_vram::{Bytes, Category, Ledger};

use super::eval_set::EvalSet;
use super::evaluation::{Due, Evaluation, Evaluator};
use super::scoring::shown;
use super::settings::dtype;
use super::source::{binding, load_model, model_folder};
use super::{EngineError, memory};
use crate::config::Config;
use crate::failure::in_one_line;
use crate::logging::Progress;
use crate::store::{Binding, EvalRow, EvalSample, ScoreRow, Store, StoreError};

/// What the base model is asked with.
pub(super) struct Questions<'a> {
    pub(super) config: &'a Config,
    pub(super) ledger: &'a Ledger,
    pub(super) evaluation: &'a Evaluation,
    /// What the newest model has in common with the base model.
    pub(super) bound: Binding,
    pub(super) stop: &'a dyn Fn() -> bool,
    pub(super) progress: &'a Progress,
}

/// Keeps an evaluation of the base model, as far as it is of eval sets: the job's own rows are asked of
/// no other job's models.
pub(super) fn keep(
    store: &mut Store,
    row: &EvalRow,
    samples: &[EvalSample],
) -> Result<(), StoreError> {
    let scores: Vec<ScoreRow> = row.scores.iter().filter(|s| !s.is_own()).cloned().collect();
    store.record_base(&scores, samples)
}

impl Questions<'_> {
    /// Puts to the base model what it was never asked. Where it cannot be had, that is said, and the job
    /// goes on without.
    pub(super) fn ask(&self, store: &mut Store) -> Result<(), EngineError> {
        if !self.config.eval.compare_to_base || self.config.eval.eval_steps == 0 {
            return Ok(());
        }
        let mut sets = vec![];
        // What can have no score would be asked before every job.
        for set in self.evaluation.sets.iter().filter(|set| !set.is_own && set.is_measured()) {
            if !store.knows_base(&set.asked)? {
                sets.push(set);
            }
        }
        if sets.is_empty() {
            return Ok(());
        }
        match self.evaluate(&sets) {
            Ok((row, samples)) => {
                for score in &row.scores {
                    tracing::info!("base model: {}", shown(score));
                }
                Ok(keep(store, &row, &samples)?)
            }
            Err(error) if error.is_a_stop() => Err(error),
            Err(error) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!("; hint: {hint}"));
                let error = in_one_line(&error);
                tracing::warn!("scores are not held against the base model's: {error}{hint}");
                Ok(())
            }
        }
    }

    fn evaluate(&self, sets: &[&EvalSet]) -> Result<(EvalRow, Vec<EvalSample>), EngineError> {
        let folder = model_folder(self.config, self.progress)?;
        let shape = ModelConfig::read(&folder)?;
        let hollow = CausalLm::hollow(shape, dtype(self.config), &candle_core::Device::Cpu)?;
        let sha256 = file_sha256(&folder.join("tokenizer.json"))?;
        let differences = self.bound.differences(&binding(self.config, &hollow, &sha256));
        if !differences.is_empty() {
            let (path, why) = (folder.display(), differences.join("; "));
            return Err(EngineError::BaseModel(format!("{path} is another one: {why}")));
        }
        let bytes = hollow.params().bytes() as u64;
        let of_answers = sets.iter().map(|set| set.bytes_needed(&hollow, &set.options)).max();
        self.unless_it_does_not_fit(bytes + of_answers.unwrap_or(0))?;
        let model = load_model(self.config, &folder, None, self.progress)?;
        let _weights = self.ledger.enter(Category::Weights, bytes);
        let tokenizer: &Tokenizer = &self.evaluation.tokenizer;
        let (ledger, stop, progress) = (self.ledger, self.stop, self.progress);
        let evaluator = Evaluator { step: 0, model: &model, tokenizer, ledger, stop, progress };
        let due: Vec<Due> = sets.iter().map(|set| (*set, Some(set.options.clone()))).collect();
        let done = evaluator.run(&due)?;
        for words in done.shortages.iter().chain(&done.troubles) {
            tracing::warn!("base model: {words}");
        }
        Ok((done.row, done.samples))
    }

    fn unless_it_does_not_fit(&self, needed: u64) -> Result<(), EngineError> {
        memory::give_back();
        match memory::room(self.config) {
            Some(room) if needed > room => Err(EngineError::BaseModel(format!(
                "it takes {} beside the newest model, and there are {}",
                Bytes(needed),
                Bytes(room)
            ))),
            _ => Ok(()),
        }
    }
}
