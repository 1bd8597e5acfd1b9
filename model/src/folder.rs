//! A model folder as transformers writes one.

use std::path::Path;

use candle_core::{DType, Tensor};
use chandler_durable::{Fs, is_there, write_file, write_with};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{ModelConfig, OneOrMany};
use crate::weights::{MAX_SHARD_BYTES, WeightFiles, write_shards};
use crate::{ModelError, foreign};

/// Files beside the weights that belong to a model, copied as they are where they exist.
pub const COMPANION_FILES: [&str; 13] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// Writes weights, configuration and the companion files of `source` to `folder`, which exists.
///
/// `tensors` are the base model's parameters by name; the configuration keeps every key that it
/// was read with, and names `dtype` as the type of the weights.
pub fn write_model(
    fs: &dyn Fs,
    folder: &Path,
    config: &ModelConfig,
    tensors: &[(&str, &Tensor)],
    dtype: DType,
    source: &Path,
) -> Result<(), ModelError> {
    write_shards(fs, folder, tensors, dtype, MAX_SHARD_BYTES)?;
    let config = config_json(config, dtype);
    write_file(fs, &folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    for name in COMPANION_FILES {
        let from = source.join(name);
        if is_there(&from)? {
            foreign::check_inside(source, &from)?;
            let mut file = foreign::open_regular(&from)?;
            write_with(fs, &folder.join(name), |copy| std::io::copy(&mut file, copy))?;
        }
    }
    Ok(())
}

/// The type that most of a model folder's weights are stored in; none of them is read.
pub fn stored_dtype(folder: &Path) -> Result<DType, ModelError> {
    Ok(WeightFiles::open(folder)?.stored_dtype().unwrap_or(DType::F32))
}

/// The configuration with the type of the saved weights under the name it already has there.
fn config_json(config: &ModelConfig, dtype: DType) -> Value {
    let mut json = config.raw.clone();
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        DType::F64 => "float64",
        _ => "float32",
    };
    if let Some(keys) = json.as_object_mut() {
        let key = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(key.to_owned(), json!(name));
    }
    json
}

/// What `generation_config.json` says that matters here; empty where there is no such file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a generation; `None` where the file does not say.
    pub eos_token_ids: Option<Vec<u32>>,
    /// The token that fills up a batch.
    pub pad_token_id: Option<u32>,
}

#[derive(Deserialize)]
struct RawGenerationConfig {
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        if !is_there(&path)? {
            return Ok(Self::default());
        }
        let text = foreign::read_json(&path)?;
        let raw: RawGenerationConfig =
            serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })?;
        let eos_token_ids = raw.eos_token_id.map(Vec::from);
        Ok(Self { eos_token_ids, pad_token_id: raw.pad_token_id })
    }
}
