//! From records of text and chat to rows of tokens with labels.
//!
//! A JSON line, or a row of a Parquet file, becomes a [`Record`]; the model's own chat template renders it, its tokenizer cuts
//! it, and the tokens that carry loss get labels, all with the results of transformers and TRL.
//! [`Dataset`] does that for whole files in parallel, keeps the tokens on disk, and hands out
//! [`Row`]s, packed or not.
//!
//! ```
//! use chandler_data::{DataOptions, LossOn, TextPipeline};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/goldens/models/qwen3");
//! let pipeline = TextPipeline::open(model.as_ref())?;
//! let line = r#"{"prompt": "2 + 2 =", "completion": " 4"}"#;
//! let example = pipeline.example(line, &DataOptions::default())?;
//! let trained: Vec<u32> = example.trained_ids().collect();
//! assert_eq!(pipeline.tokenizer().decode(&trained, false)?, " 4<|im_end|>");
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod cache;
mod chat_template;
mod dataset;
mod error;
mod example;
mod files;
mod lines;
mod mersenne_twister;
mod options;
mod order;
mod packing;
#[cfg(feature = "parquet")]
mod parquet;
mod pipeline;
mod python_text;
mod question;
mod record;
mod row;
mod source_lines;
mod stats;
mod strict_json;
mod template_source;
mod tokenizer;
mod tokenizer_rules;

pub use chat_template::{ChatTemplate, RenderOptions, Rendered};
pub use dataset::{BuildProgress, Dataset, file_sha256};
pub use error::{BadLine, DataError, Place};
pub use example::Example;
pub use options::{DataOptions, LossOn, OnBadLine, Packing};
pub use order::{row_order, split_held_out};
pub use pipeline::TextPipeline;
pub use question::{Choice, Choices, Question};
pub use record::{ChatExtras, Messages, Record};
pub use row::{IGNORE_INDEX, Row, digest_of};
pub use source_lines::{SourceError, SourceLines};
pub use stats::LengthStats;
pub use tokenizer::Tokenizer;
