//! The models that are measured.

use std::path::PathBuf;
use std::str::FromStr;

use chandler_model::{CausalLm, ModelConfig};
use serde_json::{Value, json};

use crate::engine::EngineError;
use crate::failure::Failure;

/// A model by its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A Qwen 3 of 42 million parameters.
    Small,
    /// The shape of Qwen3-0.6B.
    Qwen3Of600M,
    /// What a `config.json` says.
    File(PathBuf),
}

impl FromStr for Shape {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "small" => Self::Small,
            "qwen3-0.6b" => Self::Qwen3Of600M,
            path => Self::File(path.into()),
        })
    }
}

impl Shape {
    /// What the user called it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Small => "small".to_owned(),
            Self::Qwen3Of600M => "qwen3-0.6b".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }

    pub(super) fn config(&self) -> Result<ModelConfig, Failure> {
        let (value, path) = match self {
            Self::Small => (qwen3([512, 8, 8, 4, 64, 1536, 32_768]), "small".into()),
            Self::Qwen3Of600M => {
                (qwen3([1024, 28, 16, 8, 128, 3072, 151_936]), "qwen3-0.6b".into())
            }
            Self::File(path) => (read(path)?, path.clone()),
        };
        Ok(ModelConfig::from_json(value, &path).map_err(EngineError::Model)?)
    }
}

/// Hidden size, layers, heads, key/value heads, head dimension, feed-forward size, vocabulary.
fn qwen3([hidden, layers, heads, kv_heads, head_dim, ffn, vocab]: [usize; 7]) -> Value {
    json!({
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": true,
        "max_position_embeddings": 40_960,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
    })
}

fn read(path: &PathBuf) -> Result<Value, EngineError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| EngineError::Read { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|error| EngineError::Json {
        path: path.clone(),
        expected: "small, qwen3-0.6b or a model's config.json",
        reason: error.to_string(),
    })
}

/// What a report says of a model.
pub(super) fn describe(shape: &Shape, model: &CausalLm) -> Value {
    let config = model.config();
    let count = |trainable_only: bool| -> usize {
        let params = model.params().iter().map(|(_, param)| param);
        let counted = params.filter(|param| param.trainable || !trainable_only);
        counted.map(|param| param.value.elem_count()).sum()
    };
    json!({
        "name": shape.name(),
        "params": count(false),
        "trainable_params": count(true),
        "hidden_size": config.hidden_size,
        "layers": config.layers.len(),
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tied": config.tie_word_embeddings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_shapes_have_the_parameters_of_their_models() {
        let count = |name: &str| name.parse::<Shape>().unwrap().config().unwrap().num_parameters();
        assert_eq!(count("small"), 41_952_768);
        // As the hub says of Qwen/Qwen3-0.6B, tied weights once.
        assert_eq!(count("qwen3-0.6b"), 596_049_920);
    }
}
