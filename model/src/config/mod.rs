//! What a model is made of, read from the `config.json` of a Hugging Face model folder.
//!
//! The families differ in a handful of properties (which layers have a bias or a norm, how a norm
//! scales, what a layer can see), so one [`ModelConfig`] spells all of those out, and the rest of
//! the crate never asks for a family's name.

mod defaults;
mod layers;
mod raw;
pub(crate) use raw::OneOrMany;
mod rope_parameters;

use std::path::Path;

use chandler_kernels::activation::Activation;
use serde_json::Value;

use crate::{ModelError, foreign};
pub use defaults::Family;
pub use layers::{Attended, LayerConfig};
pub use rope_parameters::{RopeParameters, RopeScaling};

/// The shape and the properties of a causal language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// V: rows of the embedding table.
    pub vocab_size: usize,
    /// E.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K; H is a multiple of it.
    pub num_key_value_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Tokens that the model was made for.
    pub max_position_embeddings: usize,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
    /// ε of every norm.
    pub rms_norm_eps: f64,
    /// Norms scale by `1 + w` (Gemma).
    pub unit_offset_norm: bool,
    /// Activation of the gate.
    pub activation: Activation,
    /// Bias of the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias of the attention's output projection.
    pub o_bias: bool,
    /// Bias of the feed-forward projections.
    pub mlp_bias: bool,
    /// Each query and key head goes through a norm before the rotation.
    pub qk_norm: bool,
    /// Each half of a block ends in a norm of its own, before it is added (Gemma).
    pub post_norms: bool,
    /// Factor on the embeddings (Gemma's √E).
    pub embedding_scale: Option<f64>,
    /// Factor on `q · k`.
    pub attention_scale: f64,
    /// Soft cap on attention scores.
    pub attention_softcap: Option<f64>,
    /// Soft cap on the final logits.
    pub final_logit_softcap: Option<f64>,
    /// The head's weight is the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f64,
    /// Rotation of layers that attend to everything, and of all layers in most families.
    pub rope: RopeParameters,
    /// Rotation of sliding-window layers, where it is another (Gemma 3).
    pub sliding_rope: Option<RopeParameters>,
    /// Tokens after which generation ends; none, one or several.
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The row of the embedding table that looking tokens up does not train, as in
    /// `torch.nn.Embedding`: `pad_token_id`, where the configuration names one.
    pub padding_idx: Option<u32>,
    /// `config.json` as it was read; a saved model gets it back, keys that we do not know included.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        foreign::check_folder(folder)?;
        let path = folder.join("config.json");
        let value: Value = serde_json::from_str(&foreign::read_json(&path)?)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        Self::from_json(value, &path)
    }

    /// Understands a configuration that came from `path`, which only errors mention.
    pub fn from_json(value: Value, path: &Path) -> Result<Self, ModelError> {
        raw::understand(value, path)
    }

    /// Parameters of the model, tied weights counted once.
    pub fn num_parameters(&self) -> usize {
        let shapes = crate::params::shapes(self);
        shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}
