//! `config.json` as it stands on disk, and its translation.

use std::path::Path;

use chandler_kernels::activation::Activation;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::defaults::Family;
use super::layers::LayerType;
use super::{ModelConfig, layers, rope_parameters};
use crate::ModelError;

/// Rows and columns of a matrix; the largest in use have some hundred thousand.
const MAX_SIZE: usize = 1 << 22;
/// Layers, heads, and dimensions of a head.
const MAX_COUNT: usize = 1 << 12;

/// The keys that matter to us. `Option<Option<_>>` tells a `null` from a missing key.
#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    initializer_range: Option<f64>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    query_pre_attn_scalar: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    attn_logit_softcapping: Option<Option<f64>>,
    #[serde(default, deserialize_with = "present")]
    final_logit_softcapping: Option<Option<f64>>,
    use_bidirectional_attention: Option<Value>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
    bos_token_id: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    pad_token_id: Option<Option<i64>>,
    #[serde(default, deserialize_with = "present")]
    eos_token_id: Option<Option<OneOrMany>>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_local_base_freq: Option<f64>,
    pub(super) rope_scaling: Option<Map<String, Value>>,
    pub(super) rope_parameters: Option<Map<String, Value>>,
    pub(super) layer_types: Option<Vec<LayerType>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) sliding_window: Option<Option<usize>>,
    #[serde(default)]
    pub(super) use_sliding_window: bool,
    #[serde(default = "default_max_window_layers")]
    pub(super) max_window_layers: usize,
    sliding_window_pattern: Option<usize>,
    /// What transformers saves beside it.
    #[serde(rename = "_sliding_window_pattern")]
    saved_sliding_window_pattern: Option<usize>,
}

/// `eos_token_id` is a number or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl From<OneOrMany> for Vec<u32> {
    fn from(ids: OneOrMany) -> Self {
        match ids {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn default_max_window_layers() -> usize {
    28
}

impl RawConfig {
    pub(super) fn window_pattern(&self) -> usize {
        self.sliding_window_pattern.or(self.saved_sliding_window_pattern).unwrap_or(6).max(1)
    }
}

pub(super) fn understand(value: Value, path: &Path) -> Result<ModelConfig, ModelError> {
    let raw = RawConfig::deserialize(&value)
        .map_err(|source| ModelError::Json { path: path.to_path_buf(), source })?;
    let Some(model_type) = raw.model_type.as_deref() else {
        return Err(ModelError::BadConfig { key: "model_type", reason: "is missing".to_owned() });
    };
    let Some(family) = Family::from_model_type(model_type) else {
        let (path, model_type) = (path.to_path_buf(), model_type.to_owned());
        return Err(ModelError::UnknownModelType { path, model_type });
    };
    refuse_unsupported(&raw)?;
    let config = translate(family, &raw, value)?;
    check(&config)?;
    Ok(config)
}

fn refuse_unsupported(raw: &RawConfig) -> Result<(), ModelError> {
    let unsupported = |key, value: String| Err(ModelError::Unsupported { key, value });
    if let Some(quantization) = &raw.quantization_config {
        return unsupported("quantization_config", quantization.to_string());
    }
    match &raw.use_bidirectional_attention {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(value) => return unsupported("use_bidirectional_attention", value.to_string()),
    }
    match raw.partial_rotary_factor {
        Some(share) if share != 1.0 => unsupported("partial_rotary_factor", share.to_string()),
        _ => Ok(()),
    }
}

fn translate(family: Family, raw: &RawConfig, value: Value) -> Result<ModelConfig, ModelError> {
    let hidden_size = required("hidden_size", raw.hidden_size)?;
    let num_attention_heads = required("num_attention_heads", raw.num_attention_heads)?;
    let num_hidden_layers = required("num_hidden_layers", raw.num_hidden_layers)?;
    for (key, count) in [
        ("num_attention_heads", num_attention_heads),
        ("num_hidden_layers", num_hidden_layers),
        ("head_dim", raw.head_dim.unwrap_or(0)),
    ] {
        if count > MAX_COUNT {
            let reason = format!("{count} is more than {MAX_COUNT}");
            return Err(ModelError::BadConfig { key, reason });
        }
    }
    let head_dim = raw.head_dim.or(family.head_dim()).unwrap_or(hidden_size / num_attention_heads);
    let gemma = family.is_gemma();
    let attention_bias = raw.attention_bias.unwrap_or(false);
    let biased = matches!(family, Family::Llama | Family::Qwen3) || gemma;
    let query_scale = raw.query_pre_attn_scalar.unwrap_or(256.0);
    let max_position_embeddings =
        raw.max_position_embeddings.unwrap_or(family.max_position_embeddings());
    let (rope, sliding_rope) = rope_parameters::rope(family, raw, max_position_embeddings)?;
    let vocab_size = required("vocab_size", raw.vocab_size)?;
    Ok(ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: required("intermediate_size", raw.intermediate_size)?,
        num_attention_heads,
        num_key_value_heads: raw
            .num_key_value_heads
            .or(family.num_key_value_heads())
            .unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings,
        layers: layers::layers(family, raw, num_hidden_layers)?,
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
        unit_offset_norm: gemma,
        activation: activation(family, raw)?,
        qkv_bias: family == Family::Qwen2 || (biased && attention_bias),
        o_bias: biased && attention_bias,
        mlp_bias: family == Family::Llama && raw.mlp_bias.unwrap_or(false),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        post_norms: gemma,
        embedding_scale: gemma.then(|| (hidden_size as f64).sqrt()),
        attention_scale: if gemma { query_scale } else { head_dim as f64 }.powf(-0.5),
        attention_softcap: raw
            .attn_logit_softcapping
            .unwrap_or(family.attention_softcap())
            .filter(|_| gemma),
        final_logit_softcap: raw
            .final_logit_softcapping
            .unwrap_or(family.final_logit_softcap())
            .filter(|_| gemma),
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(gemma),
        initializer_range: raw.initializer_range.unwrap_or(0.02),
        rope,
        sliding_rope,
        eos_token_ids: match raw.eos_token_id.clone() {
            None => family.eos_token_ids(),
            Some(None) => vec![],
            Some(Some(ids)) => ids.into(),
        },
        bos_token_id: raw.bos_token_id.or(family.bos_token_id()),
        padding_idx: raw
            .pad_token_id
            .unwrap_or(family.pad_token_id())
            .map(|id| if id < 0 { id + vocab_size as i64 } else { id })
            .and_then(|id| u32::try_from(id).ok()),
        raw: value,
    })
}

/// A size that must be there; nothing computed from sizes within this bound overflows.
fn required(key: &'static str, value: Option<usize>) -> Result<usize, ModelError> {
    match value {
        Some(value) if value > MAX_SIZE => {
            Err(ModelError::BadConfig { key, reason: format!("{value} is more than {MAX_SIZE}") })
        }
        Some(0) => Err(ModelError::BadConfig { key, reason: "is 0".to_owned() }),
        Some(value) => Ok(value),
        None => Err(ModelError::BadConfig { key, reason: "is missing".to_owned() }),
    }
}

fn activation(family: Family, raw: &RawConfig) -> Result<Activation, ModelError> {
    let (key, name) = if family.is_gemma() {
        ("hidden_activation", raw.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh"))
    } else {
        ("hidden_act", raw.hidden_act.as_deref().unwrap_or("silu"))
    };
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        other => Err(ModelError::Unsupported { key, value: format!("\"{other}\"") }),
    }
}

fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let bad = |key, reason: String| Err(ModelError::BadConfig { key, reason });
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let reason = format!("{kv_heads} does not divide the {heads} attention heads");
        return bad("num_key_value_heads", reason);
    }
    if config.head_dim == 0 || !config.head_dim.is_multiple_of(2) {
        return bad("head_dim", format!("{} is not an even number above 0", config.head_dim));
    }
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return bad(
            "rms_norm_eps",
            format!("{} is not a small positive number", config.rms_norm_eps),
        );
    }
    if !(config.rope.theta.is_finite() && config.rope.theta > 0.0) {
        return bad("rope_theta", format!("{} is not a positive number", config.rope.theta));
    }
    Ok(())
}
