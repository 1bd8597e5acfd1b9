//! What a run tells whoever keeps its results, and what that one may want of it.

use std::path::Path;

use chandler_trainer::{BoxError, Fit};

use super::best::Best;
use crate::logging::StepProgress;
use crate::store::{EvalRow, EvalSample, StepRow};

/// Where the results of a run go.
pub(crate) trait Sink {
    /// A step is done.
    fn step(&mut self, row: &StepRow, progress: &StepProgress) -> Result<(), BoxError>;
    /// An evaluation is about to begin (`true`) or over.
    fn evaluating(&mut self, now: bool);
    /// An evaluation is done.
    fn evaluated(&mut self, row: &EvalRow, samples: &[EvalSample]) -> Result<(), BoxError>;
    /// Records of the questions that the last evaluation of the run found answered wrongly.
    fn wrong(&mut self, _records: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
    /// A checkpoint is on the disk; of its run this was the best evaluation.
    fn checkpoint(&mut self, step: u64, path: &Path, best: &Best) -> Result<(), BoxError>;
    /// How the steps are cut from now on, for runs to come.
    fn fitted(&mut self, fit: Fit) -> Result<(), BoxError>;
    /// Memory ran short, and this was done about it.
    fn memory(&mut self, message: &str) -> Result<(), BoxError>;
    /// Something failed that the run can do without.
    fn trouble(&mut self, message: &str) -> Result<(), BoxError>;
    /// Whether somebody has paused the run, or waits for an evaluation.
    fn is_awaited(&self) -> bool;
    /// What is wished from outside; called between steps, may wait while paused. An evaluation stays
    /// asked for unless the run `may_evaluate`.
    fn wish(&mut self, may_evaluate: bool) -> Wish;
}

/// What somebody outside of the run wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wish {
    /// The run should end.
    pub(crate) stop: bool,
    /// An evaluation now.
    pub(crate) eval: bool,
}
