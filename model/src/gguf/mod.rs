//! A model as one GGUF file, for llama.cpp and what is built on it.
//!
//! Names of keys and tensors, and what is changed about the weights on the way, are those of
//! llama.cpp's `convert_hf_to_gguf.py`. What llama.cpp computes otherwise than the model is refused:
//! a file that loads and answers nearly right is worse than none.

mod architecture;
mod chat;
mod error;
mod format;
mod merges;
mod tensors;
mod tokenizer_json;
mod vocabulary;

use std::path::Path;

use chandler_durable::{Fs, write_with};

pub use error::GgufError;
use format::{Entries, Value};
pub use tensors::GgufType;

use crate::CausalLm;

/// Changes with the layout of quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufSummary {
    /// Tensors.
    pub tensors: usize,
    /// Matrices that are stored in a wider type than was asked for, since their rows cannot be cut
    /// into its blocks.
    pub widened: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes `model`, any adapter merged, to `path`, whole or not at all; matrices in the type
/// `weights`, vectors in f32. Tokenizer and chat template are those of `source`, its folder.
pub fn write_gguf(
    fs: &dyn Fs,
    path: &Path,
    model: &CausalLm,
    source: &Path,
    weights: GgufType,
) -> Result<GgufSummary, GgufError> {
    let config = model.config();
    let architecture = architecture::Architecture::of(config)?;
    let mut metadata = Entries::default();
    metadata.push("general.architecture", Value::text(architecture.name));
    metadata.push("general.type", Value::text("model"));
    if let Some(name) = source.file_name().and_then(|name| name.to_str()) {
        metadata.push("general.name", Value::text(name));
    }
    metadata.push("general.file_type", Value::U32(weights.file_type()));
    metadata.push("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    architecture.describe(config, &mut metadata);
    vocabulary::describe(source, config, &mut metadata)?;
    let tensors = tensors::tensors(model, &architecture, weights)?;
    let head = format::head(&metadata, &tensors);
    let mut failed = None;
    let written = write_with(fs, path, |file| {
        file.write_all(&head)?;
        let mut bytes = head.len() as u64;
        for tensor in &tensors {
            let data = tensor.encoded().map_err(|error| {
                let told = std::io::Error::other(error.to_string());
                failed = Some(error);
                told
            })?;
            file.write_all(&data)?;
            let padding = format::padding(data.len());
            file.write_all(&vec![0; padding])?;
            bytes += (data.len() + padding) as u64;
        }
        Ok(bytes)
    });
    match (failed, written) {
        (Some(error), _) => Err(error),
        (None, bytes) => Ok(GgufSummary {
            tensors: tensors.len(),
            widened: tensors.iter().filter(|tensor| tensor.is_widened).count(),
            bytes: bytes?,
        }),
    }
}
