//! The rotation's settings, in the two spellings that configurations have: `rope_theta` beside
//! `rope_scaling`, and one `rope_parameters`, which may hold one set for each kind of layer.

use serde_json::{Map, Value};

use super::defaults::Family;
use super::raw::RawConfig;
use crate::ModelError;

/// Base and scaling of a rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// θ: wavelengths run from 2π to 2πθ.
    pub theta: f64,
    /// How frequencies are changed for texts longer than the model was pretrained on.
    pub scaling: RopeScaling,
}

/// A way to stretch a rotary embedding over longer texts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Position interpolation (Chen et al. 2023): every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// NTK-aware scaling whose base grows with the text once it is longer than
    /// `max_position_embeddings`.
    Dynamic {
        /// Strength.
        factor: f64,
        /// The length up to which nothing changes.
        max_position_embeddings: usize,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above the original length over this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the original length over this are high frequencies.
        high_freq_factor: f64,
        /// Length of the pretraining texts.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Length of the pretraining texts.
        original_max_position_embeddings: f64,
        /// Factor on cos and sin.
        attention_factor: f64,
        /// Rotations over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original length below which a frequency is divided in full.
        beta_slow: f64,
        /// Round the ramp's ends to whole dimensions.
        truncate: bool,
    },
}

/// The rotation of full layers and, where it is another, that of sliding-window layers.
pub(super) fn rope(
    family: Family,
    raw: &RawConfig,
    max_position_embeddings: usize,
) -> Result<(RopeParameters, Option<RopeParameters>), ModelError> {
    let read = |map: &Map<String, Value>, theta| parameters(map, theta, max_position_embeddings);
    let nothing = Map::new();
    let shared = raw.rope_scaling.as_ref().or(raw.rope_parameters.as_ref()).unwrap_or(&nothing);
    let nested = |kind: &str| raw.rope_parameters.as_ref()?.get(kind)?.as_object();
    let theta = raw.rope_theta.unwrap_or(family.rope_theta());
    let full = read(nested("full_attention").unwrap_or(shared), theta)?;
    if family == Family::Gemma3 {
        let local_theta = raw.rope_local_base_freq.unwrap_or(10_000.0);
        let sliding = read(nested("sliding_attention").unwrap_or(&nothing), local_theta)?;
        let sliding = (sliding != full).then_some(sliding);
        return Ok((full, sliding));
    }
    let sliding = nested("sliding_attention").map(|map| read(map, theta)).transpose()?;
    let sliding = sliding.filter(|sliding| *sliding != full);
    Ok((full, sliding))
}

fn parameters(
    map: &Map<String, Value>,
    default_theta: f64,
    max_position_embeddings: usize,
) -> Result<RopeParameters, ModelError> {
    let optional = |key: &str| map.get(key).and_then(Value::as_f64);
    let required = |key: &'static str| {
        optional(key).filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
            let reason = "this kind of rope scaling needs it, as a positive number".to_owned();
            ModelError::BadConfig { key, reason }
        })
    };
    if let Some(share) = optional("partial_rotary_factor").filter(|share| *share != 1.0) {
        let value = share.to_string();
        return Err(ModelError::Unsupported { key: "partial_rotary_factor", value });
    }
    let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str);
    let original = optional("original_max_position_embeddings");
    let original = original.unwrap_or(max_position_embeddings as f64);
    let scaling = match kind.unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: required("factor")?, max_position_embeddings },
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        "yarn" => yarn(map, optional("factor"), original, max_position_embeddings),
        other => {
            let value = format!("\"{other}\"");
            return Err(ModelError::Unsupported { key: "rope_type", value });
        }
    };
    Ok(RopeParameters { theta: optional("rope_theta").unwrap_or(default_theta), scaling })
}

fn yarn(
    map: &Map<String, Value>,
    factor: Option<f64>,
    original: f64,
    max_position_embeddings: usize,
) -> RopeScaling {
    let number = |key: &str| map.get(key).and_then(Value::as_f64).filter(|value| *value != 0.0);
    let factor = factor.unwrap_or(max_position_embeddings as f64 / original);
    let attention_factor = map.get("attention_factor").and_then(Value::as_f64);
    let attention_factor =
        attention_factor.unwrap_or_else(|| match (number("mscale"), number("mscale_all_dim")) {
            (Some(mscale), Some(all_dim)) => {
                magnitude_scale(factor, mscale) / magnitude_scale(factor, all_dim)
            }
            _ => magnitude_scale(factor, 1.0),
        });
    RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        attention_factor,
        beta_fast: number("beta_fast").unwrap_or(32.0),
        beta_slow: number("beta_slow").unwrap_or(1.0),
        truncate: map.get("truncate").and_then(Value::as_bool).unwrap_or(true),
    }
}

/// Equation 22 of the YaRN paper, with DeepSeek's factor on the logarithm.
fn magnitude_scale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
