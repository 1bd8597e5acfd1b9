//! The arithmetic that a model needs, whatever way it is computed: what is computed twice to save
//! memory counts once. A multiplication and its addition are two operations.
//!
//! For a token, the forward pass costs `2 · W` for the W elements of the matrices that it goes
//! through (the head is one, looking up an embedding is none), the gradient of the input as much,
//! and the gradient of the weights as much for those that train: `6 · trained + 4 · frozen`.
//! Attention costs `4 · H · D` for each key that a token sees and each layer, and twice that
//! backward (Chowdhery et al. 2022, appendix B; causal, so half of their square).

use chandler_model::{CausalLm, ModelConfig};

/// Elements of the matrices that a token goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrices {
    pub(super) trained: usize,
    pub(super) frozen: usize,
    /// Of both together, the head's.
    pub(super) head: usize,
}

impl Matrices {
    pub(super) fn of(model: &CausalLm) -> Self {
        const EMBEDDING: &str = "model.embed_tokens.weight";
        let tied = model.config().tie_word_embeddings;
        let (mut trained, mut frozen) = (0, 0);
        for (_, param) in model.params().iter() {
            let is_product = param.value.rank() == 2 && (tied || param.name != EMBEDDING);
            let side = if param.trainable { &mut trained } else { &mut frozen };
            *side += if is_product { param.value.elem_count() } else { 0 };
        }
        let head = model.config().vocab_size * model.config().hidden_size;
        Self { trained, frozen, head }
    }

    fn all(self) -> usize {
        self.trained + self.frozen
    }
}

/// Of one token in training, with documents of `seq_len` tokens.
pub(in crate::commands) fn train_flops_per_token(model: &CausalLm, seq_len: usize) -> f64 {
    let matrices = Matrices::of(model);
    let attention = attention_flops(model.config(), seq_len) / seq_len as f64;
    6.0 * matrices.trained as f64 + 4.0 * matrices.frozen as f64 + 3.0 * attention
}

/// Of one answer: the head is needed for the new tokens alone, and the last of them is not read.
pub(super) fn generate_flops(model: &CausalLm, prompt_len: usize, new_tokens: usize) -> f64 {
    let matrices = Matrices::of(model);
    let read = (prompt_len + new_tokens).saturating_sub(1);
    2.0 * (matrices.all() - matrices.head) as f64 * read as f64
        + 2.0 * matrices.head as f64 * new_tokens as f64
        + attention_flops(model.config(), read)
}

/// Of the forward pass over a document.
fn attention_flops(config: &ModelConfig, seq_len: usize) -> f64 {
    let width = config.num_attention_heads * config.head_dim;
    let layers = config.layers.iter();
    let seen: usize = layers.map(|layer| keys_seen(seq_len, layer.attended.window())).sum();
    4.0 * width as f64 * seen as f64
}

/// Keys that all tokens of a document see, themselves included.
fn keys_seen(seq_len: usize, window: Option<usize>) -> usize {
    let window = window.unwrap_or(seq_len).min(seq_len);
    window * (window + 1) / 2 + (seq_len - window) * window
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use chandler_model::LoraConfig;

    fn model(tied: bool) -> CausalLm {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "tie_word_embeddings": tied,
        });
        let config = ModelConfig::from_json(config, "config.json".as_ref()).unwrap();
        CausalLm::fresh(config, 1, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_formulas_by_hand() {
        let (block, head) = (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24, 32 * 16);
        for tied in [true, false] {
            let matrices = Matrices::of(&model(tied));
            assert_eq!(matrices, Matrices { trained: 2 * block + head, frozen: 0, head });
        }
        let attention = 4.0 * 16.0 * 2.0 * (1.0 + 2.0 + 3.0);
        let expected = 6.0 * (2 * block + head) as f64 + 3.0 * attention / 3.0;
        assert_eq!(train_flops_per_token(&model(true), 3), expected);
        let expected = (2 * 2 * block * 3 + 2 * head * 2) as f64 + attention;
        assert_eq!(generate_flops(&model(true), 2, 2), expected);
    }

    #[test]
    fn frozen_weights_have_no_gradient_of_their_own() {
        let mut lora = model(true);
        let config =
            LoraConfig { r: 2, lora_alpha: 4.0, use_rslora: false, target_modules: vec![] };
        lora.add_lora(config, 1).unwrap();
        let base = Matrices::of(&model(true));
        // q and o, k and v, gate and up and down.
        let adapter = 2 * 2 * (2 * 32 + 2 * 24 + 3 * 40);
        let expected = Matrices { trained: adapter, frozen: base.trained, head: base.head };
        assert_eq!(Matrices::of(&lora), expected);
    }

    #[test]
    fn a_window_bounds_what_is_seen() {
        assert_eq!(keys_seen(5, None), 15);
        assert_eq!(keys_seen(5, Some(2)), 1 + 2 * 4);
        assert_eq!(keys_seen(5, Some(9)), 15);
        assert_eq!(keys_seen(0, None), 0);
    }
}
