//! What a run tells its surroundings, and what they may ask of it.

use std::path::Path;

use chandler_durable::{Fs, RealFs};
use chandler_model::CausalLm;
use chandler_vram::Shortage;

use crate::{BoxError, Fit, StepMetrics, TrainError};

/// What is to happen at a step boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// The next step.
    Continue,
    /// A checkpoint, and the next step.
    Checkpoint,
    /// The end of the run, without a checkpoint of its own.
    Stop,
    /// The same, but as if all steps were done.
    Finish,
}

/// Whoever watches a run: writes metrics, evaluates, stops it.
///
/// All of it happens between steps, on the run's own thread, and nothing of it changes what the
/// run computes.
pub trait Observer {
    /// The model after `step` steps; called once before the first step too.
    fn at_boundary(&mut self, step: u64, model: &CausalLm) -> Result<Control, BoxError>;

    /// Whether the metrics of `step` may come after its boundary, when a GPU has been given the next
    /// step: what the observer does at this boundary does not need them.
    fn metrics_may_be_late(&self, _step: u64) -> bool {
        false
    }

    /// A step is done.
    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError>;

    /// Memory ran out in the step after `step`, which is done again within a tighter fit.
    fn tightened(&mut self, _step: u64, _fit: Fit, _why: &Shortage) -> Result<(), BoxError> {
        Ok(())
    }

    /// Where the checkpoint of `step` should be written; `None` leaves it out.
    fn checkpoint_path(&mut self, step: u64) -> Result<Option<std::path::PathBuf>, BoxError>;

    /// Whether `bytes` of memory may be taken for a copy from which a checkpoint is written while
    /// training goes on. Without one, training waits until it is written. 0 asks whether memory that is
    /// kept for the next copy may stay.
    fn has_room_for_copy(&mut self, _bytes: u64) -> bool {
        false
    }

    /// What a checkpoint of so many bytes is written through while training waits for it.
    fn file_system(&self, _bytes: u64) -> Box<dyn Fs> {
        Box::new(RealFs)
    }

    /// A checkpoint is on the disk; told at a later boundary if it was written meanwhile.
    fn checkpoint_written(&mut self, step: u64, path: &Path) -> Result<(), BoxError>;

    /// A checkpoint could not be written; what was begun of it is not taken for one. The run ends
    /// with the error that is returned.
    fn checkpoint_failed(&mut self, _step: u64, error: TrainError) -> Result<(), TrainError> {
        Err(error)
    }

    /// What a checkpoint should remember for its observer.
    fn checkpoint_extra(&mut self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn at_boundary(&mut self, _step: u64, _model: &CausalLm) -> Result<Control, BoxError> {
        Ok(Control::Continue)
    }

    fn step_done(&mut self, _metrics: &StepMetrics) -> Result<(), BoxError> {
        Ok(())
    }

    fn checkpoint_path(&mut self, _step: u64) -> Result<Option<std::path::PathBuf>, BoxError> {
        Ok(None)
    }

    fn checkpoint_written(&mut self, _step: u64, _path: &Path) -> Result<(), BoxError> {
        Ok(())
    }
}
