//! Everything that can go wrong around a model, whose fault it is, and what to do.

use std::path::PathBuf;

use chandler_daemon_lock::LockError;
use chandler_data::DataError;
use chandler_durable::DurableError;
use chandler_evaluator::EvalError;
use chandler_model::ModelError;
use chandler_trainer::TrainError;

use super::device::hint_of_cuda;
use super::lineage::LostModel;
use super::no_folder::NoFolder;
use super::origin::OtherBase;
use super::rollback::NoRollback;
use super::trend::Diverged;
use crate::config::ConfigError;
use crate::daemon::{Fault, JobError, is_full};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::queue::{BadLine, QueueError};
use crate::store::{BindingMismatch, StoreError};
use crate::worker::WorkerError;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No model was named.
    #[error("no model is configured")]
    NoModel,
    /// A folder was named that is not there.
    #[error(transparent)]
    NoFolder(#[from] NoFolder),
    /// The model could not be read, built or written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model could not be had from the hub.
    #[error(transparent)]
    Hub(#[from] chandler_model::hub::HubError),
    /// The model did not get to the hub.
    #[error(transparent)]
    Push(#[from] chandler_model::hub::PushError),
    /// The model did not become a GGUF file.
    #[error(transparent)]
    Gguf(#[from] chandler_model::gguf::GgufError),
    /// The data could not be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// What strangers wrote could not be read.
    #[error(transparent)]
    Worker(#[from] Box<WorkerError>),
    /// Training ended before its time.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// It came to nothing.
    #[error(transparent)]
    Diverged(#[from] Diverged),
    /// An evaluation failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A file could not be written whole.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The database did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the queue could not be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The state directory is not ours any more.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state directory descends from another model.
    #[error(transparent)]
    Binding(#[from] Box<BindingMismatch>),
    /// What was learned is gone from its place.
    #[error(transparent)]
    Lost(#[from] Box<LostModel>),
    /// `model.path` is not what the model began from.
    #[error(transparent)]
    OtherBase(#[from] Box<OtherBase>),
    /// A snapshot was not put in place of the model.
    #[error(transparent)]
    Rollback(#[from] NoRollback),
    /// The settings of an eval set cannot be used.
    #[error(transparent)]
    EvalSet(#[from] Box<ConfigError>),
    /// A file that a command was given could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file or folder could not be put in its place.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file that a command was given is not what it should be.
    #[error("{} is not {expected}: {reason}", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What the reader says.
        reason: String,
    },
    /// Whether there are GPUs is not known.
    #[error("CUDA does not start, and model.device is \"auto\": {reason}")]
    NoCuda {
        /// What the driver says.
        reason: Box<candle_core::Error>,
    },
    /// A GPU that cannot be opened.
    #[error("GPU {ordinal} cannot be used: {reason}")]
    NoGpu {
        /// Its number.
        ordinal: usize,
        /// What the driver says.
        reason: Box<candle_core::Error>,
    },
    /// Another process has the GPU.
    #[error("the GPU is not free: {0}")]
    GpuLock(#[source] LockError),
    /// A process has one GPU.
    #[error("this process is on GPU {ours} already, and was asked for GPU {wanted}")]
    OtherGpu {
        /// Its own.
        ours: usize,
        /// That which it was asked for.
        wanted: usize,
    },
    /// Too little memory for an evaluation, and `memory.on_pressure` is `stop`.
    #[error("{0}, and memory.on_pressure is \"stop\"")]
    Pressure(String),
    /// A folder without an eval set that could be read.
    #[error("there is no eval set to ask in {}", .0.display())]
    NoSets(PathBuf),
    /// There is no base model to hold scores against.
    #[error("the base model cannot be asked: {0}")]
    BaseModel(String),
    /// More than the model reads at a time.
    #[error(
        "the conversation has {tokens} tokens, and the model reads {context} at most, its answer \
             among them"
    )]
    TooLong {
        /// Of the conversation.
        tokens: usize,
        /// Of the model.
        context: usize,
    },

    /// The run would need more memory than there is.
    #[error(
        "the run needs {needed}, however its steps are cut, and there are {available}: {lacking} \
         are lacking\n{table}"
    )]
    DoesNotFit {
        /// By the plan.
        needed: chandler_vram::Bytes,
        /// By the meters.
        available: chandler_vram::Bytes,
        /// The difference.
        lacking: chandler_vram::Bytes,
        /// The plan.
        table: String,
    },
}

impl EngineError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoModel => Some(
                "give --model DIR (or an id such as Qwen/Qwen3-0.6B), or set model.path in \
                 chandler.toml"
                    .to_owned(),
            ),
            Self::NoFolder(error) => Some(error.hint()),
            Self::Model(error) => error.hint(),
            Self::Hub(error) => error.hint(),
            Self::Gguf(error) => error.hint(),
            Self::Push(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Worker(error) => error.hint(),
            Self::Train(error) => match (within(error), store_within(error)) {
                (Some(inner), _) => inner.hint(),
                (None, Some(inner)) => inner.hint(),
                (None, None) => error.hint(),
            },
            Self::Diverged(error) => Some(error.hint()),
            Self::Eval(error) => error.hint(),
            Self::Durable(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::EvalSet(error) => error.hint(),
            Self::Queue(error) => error.hint(),
            Self::Lock(error) | Self::GpuLock(error) => error.hint(),
            Self::NoCuda { reason } | Self::NoGpu { reason, .. } => Some(hint_of_cuda(reason)),
            Self::OtherGpu { .. } => {
                Some("start the process anew after changing model.device".to_owned())
            }
            Self::Binding(mismatch) => Some(mismatch.hint()),
            Self::Lost(lost) => Some(lost.hint()),
            Self::Rollback(error) => Some(error.hint()),
            Self::OtherBase(other) => Some(other.hint()),
            Self::Read { .. } => Some("check the path and that this user may read it".to_owned()),
            Self::Write { .. } => Some("check the owner, the mode and the free space".to_owned()),
            Self::Json { expected, .. } => Some(format!("write {expected} into it")),
            Self::Pressure(_) => Some(
                "lower eval.batch_size or eval.max_new_tokens, end other programs that use the \
                 memory, or set memory.on_pressure = \"adapt\""
                    .to_owned(),
            ),
            Self::NoSets(_) => Some(
                "a set is a file of records named NAME.jsonl; what was said above is why the others \
                 were left out"
                    .to_owned(),
            ),
            Self::BaseModel(_) => Some(
                "give back memory or set model.path to the base model; eval.compare_to_base = false \
                 asks it nothing"
                    .to_owned(),
            ),
            Self::TooLong { .. } => {
                Some("begin a new conversation (/new in `chandler chat`)".to_owned())
            }
            Self::DoesNotFit { .. } => Some(
                "lower train.per_device_train_batch_size or data.max_length (raise \
                 train.gradient_accumulation_steps to keep the global batch), set \
                 train.gradient_checkpointing = true, or train an adapter with lora.r = 16"
                    .to_owned(),
            ),
        }
    }

    /// The code that a command ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Train(error) if within(error).is_some() => {
                within(error).map_or(Exit::Error, Self::exit)
            }
            Self::NoModel
            | Self::NoFolder(_)
            | Self::OtherBase(_)
            | Self::Rollback(NoRollback::NoSnapshot { .. }) => Exit::Usage,
            Self::Lost(_) => Exit::StateDir,
            Self::Lock(_) | Self::GpuLock(_) => Exit::LockHeld,
            Self::Worker(error) => error.exit(),
            Self::DoesNotFit { .. } | Self::Pressure(_) => Exit::DoesNotFit,
            Self::Data(error) if blames_the_file(error) => Exit::BadData,
            Self::Durable(error) | Self::Train(TrainError::Durable(error))
                if error.is_out_of_space() =>
            {
                Exit::NoSpace
            }
            Self::Model(ModelError::Write(error)) | Self::Data(DataError::Write(error))
                if error.is_out_of_space() =>
            {
                Exit::NoSpace
            }
            _ if is_full(self) => Exit::NoSpace,
            Self::Json { .. } => Exit::BadData,
            _ => Exit::Error,
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Train(error) if within(error).is_some() => {
                within(error).map_or(Fault::Attempt, Self::fault)
            }
            Self::Data(error) if blames_the_file(error) => Fault::File,
            Self::Worker(error) => error.fault(),
            Self::Train(TrainError::NothingToLearn { .. } | TrainError::NoRows) => Fault::File,
            // A disk or a database that does not take what it is given; or a checkpoint of other
            // settings or of a later version, which another attempt does not change and which is not
            // to be lost.
            Self::Train(
                TrainError::Durable(_)
                | TrainError::Observer(_)
                | TrainError::OtherRun { .. }
                | TrainError::BadCheckpoint { .. },
            ) => Fault::Setup(self.exit()),
            Self::Train(_) | Self::Diverged(_) | Self::Eval(_) => Fault::Attempt,
            other => Fault::Setup(other.exit()),
        }
    }
}

/// An error of ours that went through the trainer.
fn within(error: &TrainError) -> Option<&EngineError> {
    match error {
        TrainError::Observer(inner) => inner.downcast_ref(),
        _ => None,
    }
}

/// The database's error that went through the trainer.
fn store_within(error: &TrainError) -> Option<&StoreError> {
    match error {
        TrainError::Observer(inner) => inner.downcast_ref(),
        _ => None,
    }
}

impl EngineError {
    /// What was no number and in which step, where that is what ended a run.
    pub(crate) fn not_finite(&self) -> Option<(&'static str, u64)> {
        match self {
            Self::Train(TrainError::NotFinite { step, what, .. }) => Some((what, *step)),
            Self::Train(error) => within(error)?.not_finite(),
            _ => None,
        }
    }

    /// Whether it is only that somebody wanted an end.
    pub(crate) fn is_a_stop(&self) -> bool {
        match self {
            Self::Worker(error) => matches!(**error, WorkerError::Stopped),
            Self::Eval(error) => matches!(error, EvalError::Stopped),
            _ => false,
        }
    }
}

fn blames_the_file(error: &DataError) -> bool {
    matches!(
        error,
        DataError::Empty { .. }
            | DataError::BadLines { .. }
            | DataError::NothingToLearn { .. }
            | DataError::Record { .. }
            | DataError::Render { .. }
            | DataError::TokenOutOfVocabulary { .. }
            | DataError::Changed { .. }
            | DataError::BadParquet { .. }
    )
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl From<WorkerError> for EngineError {
    fn from(error: WorkerError) -> Self {
        Self::Worker(Box::new(error))
    }
}

impl From<EngineError> for JobError {
    fn from(error: EngineError) -> Self {
        let (fault, hint) = (error.fault(), error.hint());
        let bad_lines = match &error {
            EngineError::Data(DataError::BadLines { lines, .. }) => {
                let plain = |bad: &chandler_data::BadLine| BadLine {
                    line: bad.line,
                    reason: bad.reason.clone(),
                };
                lines.iter().map(plain).collect()
            }
            EngineError::Worker(error) => match &**error {
                WorkerError::Refused { refusal, .. } => refusal.bad_lines.clone(),
                _ => vec![],
            },
            _ => vec![],
        };
        Self { fault, error: anyhow::Error::new(error), hint, bad_lines }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        Self::new(exit, error, hint)
    }
}
