//! Causal language models on candle, with a backward pass and a KV cache.
//!
//! A model is read from a Hugging Face folder (Llama, Mistral, Qwen 2, Qwen 3, Gemma 2 and Gemma 3
//! text) and is one chain: embedding, blocks, final norm and head. Every link has a forward and a
//! hand-written backward pass over documents laid end to end, so whoever trains decides what is
//! kept and what is computed again. For generation, the same weights run over a [`KvCache`] that
//! the caller owns. Adapters are LoRA in peft's folder format.
//!
//! ```
//! use candle_core::{DType, Device};
//! use chandler_model::{CausalLm, Gradients, ModelConfig, SequenceLayout};
//!
//! # fn main() -> Result<(), chandler_model::ModelError> {
//! let config = serde_json::json!({
//!     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//!     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
//! });
//! let config = ModelConfig::from_json(config, "config.json".as_ref())?;
//! let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu)?;
//!
//! // Two documents of two tokens; the last of each has nothing to predict.
//! let input = model.input(&[3, 1, 4, 1], SequenceLayout::new([2, 2]))?;
//! let x0 = model.embed(&input)?;
//! let (x1, saved0) = model.block_forward(0, &x0, &input)?;
//! let (x2, saved1) = model.block_forward(1, &x1, &input)?;
//! let mut gradients = Gradients::none(model.params());
//! let (score, dx2) = model.loss_backward(&x2, &[1, -100, 1, -100], 0.5, &mut gradients)?;
//! // `None` where nothing below a block is trained.
//! if let Some(dx1) = model.block_backward(1, saved1, &input, &dx2, &mut gradients)?
//!     && let Some(dx0) = model.block_backward(0, saved0, &input, &dx1, &mut gradients)?
//! {
//!     model.embed_backward(&input, &dx0, &mut gradients)?;
//! }
//! assert_eq!(score.wait()?.num_targets, 2);
//! assert_eq!(gradients.iter().count(), model.params().len());
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod block;
mod cached;
mod causal_lm;
mod config;
mod decode_graph;
mod error;
mod folder;
mod foreign;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod init;
mod kv_cache;
mod layout;
mod linear;
mod lora;
mod norm;
mod params;
mod rehearsal;
mod rope;
mod weights;

pub use block::SavedBlock;
pub use cached::PREFILL_TOKENS;
pub use causal_lm::{CausalLm, Input};
pub use chandler_kernels::linear_cross_entropy::{IGNORE_INDEX, Pending, Score};
pub use chandler_kernels::logits;
pub use config::{Attended, Family, LayerConfig, ModelConfig, RopeParameters, RopeScaling};
pub use error::ModelError;
pub use folder::{COMPANION_FILES, GenerationConfig, stored_dtype, write_model};
pub use kv_cache::KvCache;
pub use layout::SequenceLayout;
pub use lora::{AdapterBase, LoraConfig, write_adapter};
pub use params::{Gradients, Param, ParamId, Params};
pub use weights::{
    MAX_SHARD_BYTES, SafetensorsFile, SafetensorsImage, write_safetensors, write_shards,
};
