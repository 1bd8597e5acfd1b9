//! The engine: what the commands and the daemon do with models, composed from the library crates.

mod error;
mod evaluation;
mod guard;
mod job_runner;
mod memory;
mod planning;
mod publish;
mod reading;
mod saving;
mod session;
mod settings;
mod source;
mod watch;

pub use error::EngineError;
pub(crate) use evaluation::{Evaluated, Evaluation, stop_watcher, text_of};
pub use job_runner::runner;
pub(crate) use job_runner::{GoneOn, checkpoint_bytes, checkpoint_facts, log_evaluation, resume};
pub(crate) use memory::{beside_plan as memory_beside_plan, room as memory_room};
pub(crate) use planning::{Planning, answers_shape, fitting, model_shape, train_shape};
pub(crate) use publish::{export, write_merged_model, write_output};
pub(crate) use reading::{Reader, questions_from};
pub(crate) use session::{Prepared, Request, prepare};
pub(crate) use settings::{data_options, dtype, generate_options, lora, train_settings};
pub(crate) use source::{load_model, model_folder, stop_ids};
pub(crate) use watch::{Around, Sink, Watch, Wish};
