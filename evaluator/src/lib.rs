//! Generation and scoring inside a scope that gives its memory back.
//!
//! A KV cache can be as large as the model. It exists only inside an [`EvalScope`], which enters
//! it into the ledger, and every way out of the scope (an answer, an error, a panic, a stop) frees
//! it; [`EvalScope::close`] then proves by the ledger that nothing stayed.
//!
//! ```
//! use candle_core::{DType, Device};
//! use chandler_evaluator::{EvalScope, GenerateOptions};
//! use chandler_model::{CausalLm, ModelConfig};
//! use chandler_vram::{Category, Ledger};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = serde_json::json!({
//!     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//!     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
//! });
//! let config = ModelConfig::from_json(config, "config.json".as_ref())?;
//! let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu)?;
//! let ledger = Ledger::new();
//! let mut scope = EvalScope::open(&model, &ledger);
//! let options = GenerateOptions { max_new_tokens: 5, ..GenerateOptions::default() };
//! let answers = scope.generate(&[vec![3, 1, 4]], &options, &mut |_, _| None)?;
//! assert_eq!(answers[0].new_ids.len(), 5);
//! scope.close()?;
//! assert_eq!(ledger.bytes(Category::KvCache), 0);
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod candidates;
mod error;
mod generate;
mod penalties;
mod sampling;
mod scope;
mod score;
mod scoring;

pub use error::EvalError;
pub use generate::{Answering, Ended, GenerateOptions, Generation};
pub use penalties::Place;
pub use sampling::{Distribution, SamplingOptions, TemperatureRamp};
pub use scope::{EvalScope, Shrunk};
pub use score::{LogLikelihood, LossReport};
pub use scoring::{
    Asked, Better, ChoiceLogprob, Chrf, ExternalError, ExternalLimits, ExternalScore,
    ExternalScorer, Extract, Normalization, Normalize, Numeric, Paired, Pattern, PatternError,
    Reference, RegexRule, RougeL, Rule, ScoreError, Scorer, ScorerSettingsError, Summary, Which,
    choice_accuracy, pass_at_k, pass_at_k_over, pick,
};
