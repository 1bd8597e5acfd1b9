//! Which layers see everything and which a window, by the rules of each family.

use serde::Deserialize;

use super::defaults::Family;
use super::raw::RawConfig;
use crate::ModelError;

/// What sets one layer apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// What a token sees.
    pub attended: Attended,
}

/// How far back a token of a layer sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attended {
    /// Every token before it.
    Full,
    /// Itself and the tokens before it, so many in all.
    Sliding(usize),
}

impl Attended {
    /// The window, where there is one.
    pub fn window(self) -> Option<usize> {
        match self {
            Self::Full => None,
            Self::Sliding(window) => Some(window),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LayerType {
    FullAttention,
    SlidingAttention,
}

/// The layers of `raw`: its own `layer_types` where it has them, else the family's pattern.
pub(super) fn layers(
    family: Family,
    raw: &RawConfig,
    count: usize,
) -> Result<Vec<LayerConfig>, ModelError> {
    let window = window(family, raw);
    let types = match &raw.layer_types {
        Some(types) if family != Family::Mistral && family != Family::Llama => types.clone(),
        _ => (0..count).map(|layer| by_pattern(family, raw, window, layer)).collect(),
    };
    if types.len() != count {
        let reason = format!("has {} entries for {count} layers", types.len());
        return Err(ModelError::BadConfig { key: "layer_types", reason });
    }
    types.into_iter().map(|kind| layer(kind, window)).collect()
}

fn layer(kind: LayerType, window: Option<usize>) -> Result<LayerConfig, ModelError> {
    let attended = match (kind, window) {
        (LayerType::FullAttention, _) => Attended::Full,
        (LayerType::SlidingAttention, Some(window)) if window > 0 => Attended::Sliding(window),
        (LayerType::SlidingAttention, _) => {
            let reason = "a layer has a sliding window, but its size is missing".to_owned();
            return Err(ModelError::BadConfig { key: "sliding_window", reason });
        }
    };
    Ok(LayerConfig { attended })
}

/// An explicit `null` means no window; a missing key means the family's default of 4096.
fn window(family: Family, raw: &RawConfig) -> Option<usize> {
    let configured = raw.sliding_window.unwrap_or(Some(4096));
    match family {
        Family::Llama => None,
        Family::Qwen2 | Family::Qwen3 => configured.filter(|_| raw.use_sliding_window),
        Family::Mistral | Family::Gemma2 | Family::Gemma3 => configured,
    }
}

fn by_pattern(family: Family, raw: &RawConfig, window: Option<usize>, layer: usize) -> LayerType {
    let slides = match family {
        Family::Llama => false,
        Family::Mistral => window.is_some(),
        Family::Qwen2 | Family::Qwen3 => window.is_some() && layer >= raw.max_window_layers,
        Family::Gemma2 => layer.is_multiple_of(2),
        Family::Gemma3 => !(layer + 1).is_multiple_of(raw.window_pattern()),
    };
    if slides { LayerType::SlidingAttention } else { LayerType::FullAttention }
}
