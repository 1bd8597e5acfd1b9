//! What is alive within a block, moment by moment.
//!
//! These are the moments of `chandler_model`'s block, in the order of its lines: whoever moves a
//! `drop` there moves it here. A moment counts, for one token, the elements of the tensors that are
//! alive, the block's input and the gradient of its output included.

use super::{ModelShape, Passing};

/// The widths of a block: E, F, Q, K, the rank of its adapters, and 1 or 0 for what it may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    e: u64,
    f: u64,
    q: u64,
    k: u64,
    r: u64,
    post: u64,
    qk: u64,
}

/// A moment of the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Elements of a token.
    pub(super) width: u64,
    /// Parameters of this block that have a gradient.
    pub(super) gradients: u64,
    /// Bytes of the op at work, and of what attention has left.
    pub(super) passing: u64,
}

impl Widths {
    pub(super) fn of(model: &ModelShape) -> Self {
        Self {
            e: model.hidden,
            f: model.intermediate,
            q: model.query_width,
            k: model.kv_width,
            r: model.adapter_rank,
            post: u64::from(model.post_norms),
            qk: u64::from(model.qk_norms),
        }
    }

    /// What is kept for the backward pass: `x`, q, k, v, the attention's output, the sum in the
    /// middle, gate and up; where there are norms after the halves, their inputs.
    pub(super) fn saved(self) -> u64 {
        let Self { e, f, q, k, post, .. } = self;
        (2 + 2 * post) * e + 2 * q + 2 * k + 2 * f
    }

    /// The most that the forward pass has alive.
    pub(super) fn forward(self) -> u64 {
        let Self { e, f, q, k, post, .. } = self;
        // As in down, with y, but gated no more.
        let at_sum = (4 + 2 * post) * e + 2 * q + 2 * k + 2 * f;
        self.in_gates().max(self.in_down()).max(at_sum)
    }

    /// The most that is alive where what the backward pass needs is computed again.
    pub(super) fn again(self) -> u64 {
        // Without norms after the halves, nothing leads to the output.
        if self.post > 0 { self.in_gates().max(self.in_down()) } else { self.in_gates() }
    }

    /// x, normed, projected, middle, normed again; queries and keys both before and after their rotation; gate
    /// and up.
    fn in_gates(self) -> u64 {
        let Self { e, f, q, k, r, post, .. } = self;
        (5 + post) * e + 3 * q + 3 * k + 2 * f + 2 * r
    }

    /// What is saved, gated, and the product's output.
    fn in_down(self) -> u64 {
        let Self { e, f, q, k, r, post, .. } = self;
        (3 + post) * e + 2 * q + 2 * k + 3 * f + 2 * r
    }

    /// The most that the forward pass over a piece of some prompts has alive, in elements: nothing is
    /// saved, and queries and keys exist once. `keys` is how many are read back from the cache, none
    /// where the piece is the first; `rows` whether it holds more than one prompt.
    pub(super) fn prefill(self, tokens: u64, keys: u64, rows: bool) -> u64 {
        let Self { e, f, q, k, r, post, .. } = self;
        let heads = 2 * q + 2 * k;
        let in_attention = 2 * e + (2 + u64::from(rows)) * q + 4 * k;
        let in_down = 4 * e + heads + 3 * f + 2 * r;
        let at_sum = (5 + post) * e + heads + 2 * f;
        (tokens * in_attention + 2 * keys * k).max(tokens * in_down.max(at_sum))
    }

    /// The moments of the backward pass. `below` says whether the gradient of the block's input is
    /// wanted.
    pub(super) fn backward(
        self,
        model: &ModelShape,
        passing: &Passing,
        below: bool,
    ) -> [Moment; 9] {
        let Self { e, f, q, k, r, post, qk } = self;
        let heads = 2 * q + 2 * k;
        // Of the feed-forward, down is a third; of attention, o has Q of 2Q + 2K.
        let all = model.trainable_feed_forward_params;
        let (down, two) = (all / 3, all * 2 / 3);
        let o = all + model.trainable_attention_params * q / heads.max(1);
        let block = model.trainable_block_params();
        let dx = u64::from(below);
        let &Passing { norm, attention_forward: left, attention_backward, .. } = passing;
        let moment = |width, gradients, passing| Moment { width, gradients, passing };
        [
            // The feed-forward: x, middle, dy; gate, up, the gradient of their product, and what
            // becomes of the three.
            moment((3 + 2 * post) * e + heads + 6 * f + r, 0, left),
            // The weight of down.
            moment((3 + 2 * post) * e + heads + 3 * f + 3 * r, down, left),
            // The weight of gate, then of up: normed, and the gradient of it.
            moment((5 + post) * e + heads + 2 * f + 3 * r, two, left),
            moment((5 + post) * e + heads + f + 3 * r, all, left),
            // The norm before it: the gradient of the sum in the middle.
            moment((6 + post) * e + heads, all, left + norm),
            // The output projection: x, dy, the gradient of the middle.
            moment((3 + post) * e + 3 * q + 2 * k + 3 * r, o, left),
            // Attention, with queries and keys made again where they have norms.
            moment(3 * e + (3 + qk) * q + (4 + qk) * k, o, attention_backward.max(norm)),
            // The three projections: normed, and the gradient of it.
            moment((4 + dx) * e + q + 2 * k + 3 * r, block, 0),
            // The norm before them.
            moment((4 + 2 * dx) * e, block, norm),
        ]
    }
}
