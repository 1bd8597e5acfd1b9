//! What a plan is made from.

use serde::Serialize;

/// The shape of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ModelShape {
    /// Parameters, tied ones once; those of an adapter included.
    pub params: u64,
    /// Of those, how many are trained.
    pub trainable_params: u64,
    /// Of those that are trained, how many are norms and biases: the optimizer has all of theirs in
    /// f32.
    pub trainable_vector_params: u64,
    /// The head's that are trained; 0 where it is the embedding.
    pub trainable_head_params: u64,
    /// Those of one block's attention, its norms included, that are trained.
    pub trainable_attention_params: u64,
    /// Those of one block's feed-forward, its norms included, that are trained.
    pub trainable_feed_forward_params: u64,
    /// L.
    pub layers: u64,
    /// E.
    pub hidden: u64,
    /// F.
    pub intermediate: u64,
    /// Q.
    pub query_width: u64,
    /// K.
    pub kv_width: u64,
    /// D.
    pub head_dim: u64,
    /// V.
    pub vocab: u64,
    /// b: 4 for f32, 2 for bf16.
    pub element_bytes: u64,
    /// Each half of a block has a norm at its end, whose input is kept too.
    pub post_norms: bool,
    /// Query and key heads have a norm, and are kept as they were before it.
    pub qk_norms: bool,
    /// Sliding-window layers turn by angles of their own.
    pub sliding_angles: bool,
    /// Logits are capped.
    pub capped_logits: bool,
    /// The largest rank of an adapter's matrices; 0 without one.
    pub adapter_rank: u64,
}

impl ModelShape {
    /// Those of one block that are trained.
    pub(super) fn trainable_block_params(&self) -> u64 {
        self.trainable_attention_params + self.trainable_feed_forward_params
    }

    /// The embedding's that are trained, and the final norm's.
    pub(super) fn trainable_embedding_params(&self) -> u64 {
        let others = self.layers * self.trainable_block_params() + self.trainable_head_params;
        self.trainable_params.saturating_sub(others)
    }

    /// Bytes of the angles of a token: cos and sin of half a head each, in f32.
    pub(super) fn angle_bytes(&self) -> u64 {
        4 * self.head_dim * if self.sliding_angles { 2 } else { 1 }
    }

    /// Bytes of `[rows, V]` in f32 while logits are made: where they are capped, two more.
    pub(super) fn logit_bytes(&self, rows: u64) -> u64 {
        4 * rows * self.vocab * if self.capped_logits { 3 } else { 1 }
    }
}

/// The shape of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrainShape {
    /// N.
    pub micro_batch_tokens: u64,
    /// Micro-batches of a step.
    pub micro_batches: u64,
    /// Blocks whose activations are kept; the others are computed again.
    pub kept_blocks: u64,
    /// Where the model computes in a narrower type, f32 weights stand beside its own; without them
    /// gradients are in the model's type too.
    pub master_weights: bool,
    /// Bytes of both moments of 256 parameters of a matrix: 2048 in f32, 520 in 8 bits with a scale
    /// for each block.
    pub moment_bytes_per_256: u64,
    /// Gradients leave as soon as their block is done.
    pub optimizer_in_backward: bool,
    /// What the pool of the ops' buffers comes to hold.
    pub workspace: u64,
    /// What ops take beside that while they work.
    pub passing: Passing,
}

/// Bytes that an op takes while it works and that are free for the next one: what there is on a GPU
/// in place of buffers that stay. For the tokens of a micro-batch, or of a piece of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Passing {
    /// The gradient of a norm's weight.
    pub norm: u64,
    /// The forward pass of attention in a block; a kept block keeps them.
    pub attention_forward: u64,
    /// The backward pass of attention, those of the forward pass included.
    pub attention_backward: u64,
    /// A token's attention to the cache.
    pub decode: u64,
    /// The loss.
    pub loss: u64,
}

impl Passing {
    /// On the CPU.
    pub const NONE: Self =
        Self { norm: 0, attention_forward: 0, attention_backward: 0, decode: 0, loss: 0 };
}

/// The shape of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EvalShape {
    /// Prompts side by side.
    pub batch: u64,
    /// Tokens of the longest prompt and its answer.
    pub tokens: u64,
    /// Tokens of the longest prompt.
    pub prompt_tokens: u64,
    /// Prompts go through the model so many tokens at a time.
    pub prefill_tokens: u64,
    /// Tokens of the longest row that is scored; 0 without one.
    pub scored_tokens: u64,
    /// What the pool of the ops' buffers comes to hold, what training left there included.
    pub workspace: u64,
    /// What ops take beside that while they work.
    pub passing: Passing,
}
