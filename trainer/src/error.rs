use std::path::PathBuf;

use chandler_durable::DurableError;
use chandler_model::ModelError;
use chandler_vram::Shortage;

/// What a [`Rows`](crate::Rows) or an [`Observer`](crate::Observer) may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// There is nothing to train on.
    #[error("the data has no rows")]
    NoRows,

    /// A setting that no run can have.
    #[error("train.{key} = {value}: {reason}")]
    BadSetting {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A row could not be read.
    #[error("row {index} cannot be read: {source}")]
    Row {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: BoxError,
    },

    /// A global batch in which no token has a label.
    #[error("step {step}: no token of its {rows} rows is trained")]
    NothingToLearn {
        /// From 1.
        step: u64,
        /// Rows of the batch.
        rows: usize,
    },

    /// The loss or the gradient is not a number. The weights are those of the step before.
    #[error("step {step}: the {what} is {value}")]
    NotFinite {
        /// From 1.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// NaN or infinity.
        value: f64,
    },

    /// Too little memory for a step, however it is cut.
    #[error("step {step}: {shortage}{}", if *moved { ", after some of the weights had moved" } else { "" })]
    OutOfMemory {
        /// From 1.
        step: u64,
        /// What was asked for, and who held what when it could not be had.
        shortage: Box<Shortage>,
        /// Whether the optimizer in the backward pass had moved weights, so that the step cannot
        /// be done again but from a checkpoint.
        moved: bool,
    },

    /// A checkpoint that was made by another run.
    #[error("checkpoint {} belongs to another run: {what} was {was} and is {is}", path.display())]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// In the checkpoint.
        was: String,
        /// Now.
        is: String,
    },

    /// A checkpoint without what a run needs, though its files are whole.
    #[error("checkpoint {}: {reason}", path.display())]
    BadCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },

    /// A thread could not be started.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },

    /// Whoever watches the run failed.
    #[error("{0}")]
    Observer(#[source] BoxError),

    /// The model could not compute it.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// A file could not be written or read whole.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl TrainError {
    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoRows => "add rows to the training file",
            Self::BadSetting { .. } => "correct the key in chandler.toml or on the command line",
            Self::Row { .. } | Self::Observer(_) => return None,
            Self::NothingToLearn { .. } => {
                "raise data.max_length, or look with `chandler data preview` at which tokens are \
                 trained"
            }
            Self::NotFinite { .. } => {
                "lower train.learning_rate or train.max_grad_norm, or train in f32"
            }
            Self::OtherRun { path, .. } => {
                let folder = path.parent().unwrap_or(path).display();
                return Some(format!(
                    "go on with the settings and the data of the checkpoint; or begin anew, without \
                     what was learned so far, by removing {folder}"
                ));
            }
            Self::OutOfMemory { moved: true, .. } => {
                "go on from the newest checkpoint; fewer activations will be kept"
            }
            Self::OutOfMemory { .. } => {
                "lower data.max_length, take train.optim = \"adamw_8bit\" or lora.r, or end other \
                 programs that use the memory"
            }
            Self::Thread { .. } => "look at `ulimit -u`, the limit on threads and processes",
            Self::BadCheckpoint { .. } => "begin from an earlier checkpoint",
            Self::Model(error) => return error.hint(),
            Self::Durable(error) => return error.hint(),
        };
        Some(hint.to_owned())
    }
}
