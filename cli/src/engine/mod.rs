//! The engine: what the commands and the daemon do with models, composed from the library crates.

mod error;
mod evaluation;
mod guard;
mod job_runner;
mod memory;
mod publish;
mod session;
mod settings;
mod source;
mod watch;

pub use error::EngineError;
pub(crate) use evaluation::{Evaluated, Evaluation, stop_watcher, text_of};
pub use job_runner::runner;
pub(crate) use job_runner::{checkpoint_bytes, checkpoint_facts, log_evaluation, resume};
pub(crate) use memory::{beside_plan as memory_beside_plan, room as memory_room};
pub(crate) use publish::{export, write_merged_model, write_output};
pub(crate) use session::{
    Prepared, Request, answers_shape, load_trainable, model_shape, plan_of, prepare, train_shape,
};
pub(crate) use settings::{data_options, generate_options, train_settings};
pub(crate) use source::{load_model, model_folder, stop_ids};
pub(crate) use watch::{Sink, Watch, Wish};
