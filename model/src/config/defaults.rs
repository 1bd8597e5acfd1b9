//! The architectures, and what their configurations mean where a key is left out; the defaults are
//! those of transformers' configuration classes.

/// An architecture, by its `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, and what is built like them.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: norms on query and key heads.
    Qwen3,
    /// Gemma 2: soft caps, a norm after each half, every other layer a sliding window.
    Gemma2,
    /// Gemma 3, text only: query and key norms, five sliding windows to one full layer.
    Gemma3,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 6] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3];

    /// The family of a `model_type`.
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
        }
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// `None`: as many as there are query heads.
    pub(super) fn num_key_value_heads(self) -> Option<usize> {
        match self {
            Self::Llama => None,
            Self::Mistral => Some(8),
            Self::Qwen2 | Self::Qwen3 => Some(32),
            Self::Gemma2 | Self::Gemma3 => Some(4),
        }
    }

    /// `None`: the hidden size divided by the heads.
    pub(super) fn head_dim(self) -> Option<usize> {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => None,
            Self::Qwen3 => Some(128),
            Self::Gemma2 | Self::Gemma3 => Some(256),
        }
    }

    pub(super) fn max_position_embeddings(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Mistral | Self::Gemma3 => 131_072,
            Self::Qwen2 | Self::Qwen3 => 32_768,
            Self::Gemma2 => 8192,
        }
    }

    /// The base of the rotation of full layers.
    pub(super) fn rope_theta(self) -> f64 {
        if self == Self::Gemma3 { 1_000_000.0 } else { 10_000.0 }
    }

    pub(super) fn attention_softcap(self) -> Option<f64> {
        (self == Self::Gemma2).then_some(50.0)
    }

    pub(super) fn final_logit_softcap(self) -> Option<f64> {
        (self == Self::Gemma2).then_some(30.0)
    }

    pub(super) fn pad_token_id(self) -> Option<i64> {
        self.is_gemma().then_some(0)
    }

    pub(super) fn bos_token_id(self) -> Option<u32> {
        match self {
            Self::Llama | Self::Mistral => Some(1),
            Self::Qwen2 | Self::Qwen3 => None,
            Self::Gemma2 | Self::Gemma3 => Some(2),
        }
    }

    pub(super) fn eos_token_ids(self) -> Vec<u32> {
        match self {
            Self::Llama | Self::Mistral => vec![2],
            Self::Qwen2 | Self::Qwen3 => vec![],
            Self::Gemma2 | Self::Gemma3 => vec![1],
        }
    }
}
