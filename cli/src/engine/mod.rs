//! The engine: what the commands and the daemon do with models, composed from the library crates.

mod answering;
mod base_model;
mod best;
mod checkpoints;
mod device;
mod error;
mod eval_set;
mod evaluation;
mod guard;
mod job_runner;
mod job_sink;
mod lineage;
mod lost_gpu;
mod memory;
mod no_folder;
mod origin;
mod planning;
mod publish;
mod reading;
mod requeue;
mod rollback;
mod saving;
mod scoring;
mod session;
mod settings;
mod sink;
mod snapshots;
mod source;
mod translations;
mod trend;
mod trials;
mod watch;

pub(crate) use answering::{stop_watcher, text_of};
pub(crate) use best::{Best, put_best};
pub(crate) use checkpoints::{
    GoneOn, checkpoint_bytes, clear_checkpoints, leave_checkpoint, remove_old_checkpoints, resume,
};
pub(crate) use device::{
    hint_of_cuda, hold as hold_device, open as open_device, pool as device_pool, seen_on_gpu,
    tell as tell_device, told_on_gpu, uuid as device_uuid,
};
pub use error::EngineError;
pub(crate) use eval_set::{EvalSet, read_set, read_sets};
pub(crate) use evaluation::{Evaluated, Evaluator};
pub(crate) use guard::{Decision, bytes_of_answers, decide};
pub use job_runner::runner;
pub(crate) use job_sink::log_evaluation;
pub use lineage::LostModel;
pub(crate) use lost_gpu::end_where_gpu_is_lost;
pub(crate) use memory::{
    beside_plan as memory_beside_plan, buffers, give_back as give_memory_back,
    keep_limit as keep_memory_limit, measure_anew as measure_memory_anew, room as memory_room,
    room_for_copy as memory_room_for_copy,
};
pub use no_folder::NoFolder;
pub(crate) use no_folder::named_model;
pub use origin::OtherBase;
pub(crate) use origin::check_origin;
pub(crate) use planning::{Planning, answers_shape, fitting, model_shape, train_shape};
pub(crate) use publish::{export, in_new_folder, write_output};
pub(crate) use reading::{Reader, questions_from};
pub use rollback::NoRollback;
pub(crate) use rollback::{Snapshot, roll_back, snapshots};
pub(crate) use scoring::gain_over;
pub(crate) use session::{Prepared, Request, prepare};
pub(crate) use settings::{data_options, dtype, generate_options, lora, train_settings};
pub(crate) use sink::{Sink, Wish};
pub(crate) use source::{
    base_name, cached_model_folder, identity, load_model, model_folder, model_here, stop_ids,
};
pub use trend::Diverged;
pub(crate) use trend::Trend;
pub(crate) use watch::{Around, Heard, Watch};
