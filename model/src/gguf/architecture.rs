//! What llama.cpp is told about a model's shape, and where its own differs from the model.

use chandler_kernels::activation::Activation;

use super::GgufError;
use super::format::{Entries, Value};
use crate::config::{Attended, Family, ModelConfig, RopeParameters, RopeScaling};

/// Gemma 2 has a window in every other layer, Gemma 3 in five of six.
const GEMMA2_PATTERN: usize = 2;
const GEMMA3_PATTERN: usize = 6;
/// The rotation of Gemma 3's windows.
const GEMMA3_SLIDING_THETA: f64 = 10_000.0;

/// An architecture of llama.cpp that computes what a model does.
pub(super) struct Architecture {
    pub(super) name: &'static str,
    /// Its rotation turns neighbouring rows with each other.
    pub(super) interleaves: bool,
    /// Divisors of the rotation's frequencies, where they have a tensor of their own.
    pub(super) rope_factors: Option<Vec<f32>>,
}

impl Architecture {
    /// The architecture for `config`, if there is one.
    pub(super) fn of(config: &ModelConfig) -> Result<Self, GgufError> {
        let name = match config.family {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        };
        let refuse = |what: String| Err(GgufError::Architecture { architecture: name, what });
        if let Some(what) = difference(config) {
            return refuse(what);
        }
        let interleaves = name == "llama";
        let rope_factors = match &config.rope.scaling {
            RopeScaling::Llama3 { .. } if !interleaves => {
                return refuse("rope_type llama3".to_owned());
            }
            RopeScaling::Llama3 { .. } => Some(llama3_factors(&config.rope, config.head_dim)),
            RopeScaling::Dynamic { .. } => return refuse("rope_type dynamic".to_owned()),
            RopeScaling::Yarn { .. } if !is_plain_yarn(&config.rope.scaling) => {
                return refuse("yarn with settings of its own".to_owned());
            }
            _ => None,
        };
        Ok(Self { name, interleaves, rope_factors })
    }

    /// Adds the shape to the metadata.
    pub(super) fn describe(&self, config: &ModelConfig, metadata: &mut Entries) {
        let mut push = |key: &str, value: Value| {
            metadata.push(format!("{}.{key}", self.name), value);
        };
        let count = |value: usize| Value::U32(value as u32);
        push("block_count", count(config.layers.len()));
        push("context_length", count(config.max_position_embeddings));
        push("embedding_length", count(config.hidden_size));
        push("feed_forward_length", count(config.intermediate_size));
        push("attention.head_count", count(config.num_attention_heads));
        push("attention.head_count_kv", count(config.num_key_value_heads));
        push("attention.key_length", count(config.head_dim));
        push("attention.value_length", count(config.head_dim));
        push("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
        push("vocab_size", count(config.vocab_size));
        push("rope.dimension_count", count(config.head_dim));
        push("rope.freq_base", Value::F32(config.rope.theta as f32));
        match &config.rope.scaling {
            RopeScaling::Linear { factor } => {
                push("rope.scaling.type", Value::text("linear"));
                push("rope.scaling.factor", Value::F32(*factor as f32));
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => {
                push("rope.scaling.type", Value::text("yarn"));
                push("rope.scaling.factor", Value::F32(*factor as f32));
                push("rope.scaling.original_context_length", Value::U32(*original as u32));
            }
            _ => {}
        }
        if let Some(window) = config.layers.iter().find_map(|layer| layer.attended.window()) {
            push("attention.sliding_window", count(window));
        }
        if let Some(sliding) = &config.sliding_rope {
            push("rope.freq_base_swa", Value::F32(sliding.theta as f32));
        }
        if let Some(cap) = config.attention_softcap {
            push("attn_logit_softcapping", Value::F32(cap as f32));
        }
        if let Some(cap) = config.final_logit_softcap {
            push("final_logit_softcapping", Value::F32(cap as f32));
        }
    }
}

/// What the model has that llama.cpp's code for its family does not.
fn difference(config: &ModelConfig) -> Option<String> {
    let family = config.family;
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let wanted = if gemma { Activation::GeluTanh } else { Activation::Silu };
    if config.activation != wanted {
        return Some(format!("the activation {:?}", config.activation));
    }
    let llama = matches!(family, Family::Llama | Family::Mistral);
    if config.qkv_bias && !(llama || family == Family::Qwen2) || config.o_bias && !llama {
        return Some("attention_bias".to_owned());
    }
    let usual_scale = (config.head_dim as f64).powf(-0.5);
    if (config.attention_scale / usual_scale - 1.0).abs() > 1e-6 {
        let scale = config.attention_scale.powi(-2);
        return Some(format!("query_pre_attn_scalar = {scale:.0}, which is not its head_dim"));
    }
    if gemma && !config.tie_word_embeddings {
        return Some("an lm_head of its own".to_owned());
    }
    if family == Family::Gemma3
        && (config.attention_softcap.is_some() || config.final_logit_softcap.is_some())
    {
        return Some("soft caps".to_owned());
    }
    difference_in_windows(config)
}

fn difference_in_windows(config: &ModelConfig) -> Option<String> {
    let pattern = match config.family {
        Family::Gemma2 => Some(GEMMA2_PATTERN),
        Family::Gemma3 => Some(GEMMA3_PATTERN),
        _ => None,
    };
    for (number, layer) in config.layers.iter().enumerate() {
        let slides = pattern.is_some_and(|pattern| (number + 1) % pattern != 0);
        match layer.attended {
            Attended::Full if slides => return Some(format!("no window in layer {number}")),
            Attended::Sliding(window) if !slides && window < config.max_position_embeddings => {
                return Some(format!("a window of {window} tokens in layer {number}"));
            }
            _ => {}
        }
    }
    let usual = RopeParameters { theta: GEMMA3_SLIDING_THETA, scaling: RopeScaling::Default };
    match &config.sliding_rope {
        Some(sliding) if config.family != Family::Gemma3 || *sliding != usual => {
            Some(format!("another rotation in its windows, of theta {}", sliding.theta))
        }
        None if config.family == Family::Gemma3 && config.rope != usual => {
            Some(format!("a rotation of theta {} in its windows", config.rope.theta))
        }
        _ => None,
    }
}

/// Whether llama.cpp comes to the same numbers by its own defaults.
fn is_plain_yarn(scaling: &RopeScaling) -> bool {
    let RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, truncate, .. } =
        scaling
    else {
        return false;
    };
    let usual = if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    (attention_factor - usual).abs() < 1e-9 && *beta_fast == 32.0 && *beta_slow == 1.0 && *truncate
}

/// What each frequency is divided by, after transformers' `_compute_llama3_parameters`.
fn llama3_factors(rope: &RopeParameters, head_dim: usize) -> Vec<f32> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    } = &rope.scaling
    else {
        return vec![];
    };
    let divisor = |pair: usize| {
        let wavelength =
            std::f64::consts::TAU * rope.theta.powf(2.0 * pair as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            *factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|pair| divisor(pair) as f32).collect()
}
