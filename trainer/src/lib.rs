//! The training loop: step, optimizer, schedule, checkpoint, resume.
//!
//! [`Trainer`] trains a [`CausalLm`](chandler_model::CausalLm) on [`Rows`]: full fine-tuning, or
//! the adapter alone where the model has one. Its numbers are those of transformers and TRL, the
//! order of every sum is fixed, and a run that is resumed from a checkpoint goes on with the same
//! bits as one that was never interrupted.
//!
//! ```
//! use candle_core::{DType, Device};
//! use chandler_data::Row;
//! use chandler_model::{CausalLm, ModelConfig};
//! use chandler_trainer::{NoObserver, TrainSettings, Trainer};
//! use chandler_vram::Ledger;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = serde_json::json!({
//!     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//!     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
//! });
//! let config = ModelConfig::from_json(config, "config.json".as_ref())?;
//! let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu)?;
//! let row = Row {
//!     input_ids: vec![3, 1, 4, 1, 5],
//!     labels: vec![-100, 1, 4, 1, 5],
//!     seq_lengths: vec![5],
//!     examples: 1,
//! };
//! let settings = TrainSettings { max_steps: Some(20), learning_rate: 1e-2, ..Default::default() };
//! let rows = vec![row];
//! let mut trainer = Trainer::new(model, &rows, settings, &Ledger::new())?;
//! let first = trainer.step()?;
//! trainer.train(&mut NoObserver)?;
//! assert!(trainer.last_metrics().is_some_and(|last| last.loss < first.loss));
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod background;
mod batches;
mod checkpoint;
mod error;
mod fit;
mod found;
mod layers;
mod metrics;
mod micro_batch;
mod observer;
mod optimizer;
mod rows;
mod schedule;
mod segments;
mod settings;
mod spare;
mod train_loop;
mod update;

pub use batches::BatchPlan;
pub use checkpoint::{CHECKPOINT_PREFIX, Resumed, checkpoint_step, checkpoint_weights};
pub use error::{BoxError, TrainError};
pub use fit::Fit;
pub use layers::LayerNorms;
pub use metrics::StepMetrics;
pub use micro_batch::{MicroBatch, num_items};
pub use observer::{Control, NoObserver, Observer};
pub use rows::Rows;
pub use schedule::{Ramp, Schedule};
pub use settings::{MomentsDtype, TrainSettings};
pub use train_loop::{Outcome, Trainer};
