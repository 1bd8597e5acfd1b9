//! Why a model did not become a GGUF file.

use std::path::PathBuf;

use chandler_durable::DurableError;

use crate::ModelError;

/// Why a model did not become a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// llama.cpp computes something else than this model.
    #[error("llama.cpp's {architecture:?} has no place for what this model has: {what}")]
    Architecture {
        /// The architecture's name in llama.cpp.
        architecture: &'static str,
        /// What is different.
        what: String,
    },
    /// llama.cpp cuts text otherwise than this tokenizer.
    #[error("{} cannot be written as GGUF: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What is different.
        reason: String,
    },
    /// A weight is larger than the type can hold.
    #[error("tensor {name:?} has values that {weights} does not hold")]
    OutOfRange {
        /// The tensor's name in the file.
        name: String,
        /// The type's name.
        weights: &'static str,
    },
    /// The model's files cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The file could not be written whole.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// A tensor could not be converted.
    #[error("a tensor could not be converted: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl GgufError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Architecture { .. } => Some(
                "`chandler export model DIR` writes it for transformers, vLLM and others that read \
                 Hugging Face folders"
                    .to_owned(),
            ),
            Self::Tokenizer { .. } => Some(
                "llama.cpp's convert_hf_to_gguf.py may know this tokenizer by its hash: give it \
                 the folder that `chandler export model DIR` writes"
                    .to_owned(),
            ),
            Self::OutOfRange { .. } => Some("take the type bf16, or f32".to_owned()),
            Self::Model(error) => error.hint(),
            Self::Write(error) => error.hint(),
            Self::Tensor(_) => None,
        }
    }
}
