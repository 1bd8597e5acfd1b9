//! The moments of a training step, and which of them holds the most.
//!
//! Forward, block by block; the loss; backward, block by block; the embedding. What blocks leave for
//! their backward pass waits below, gradients gather above.

use super::block::Widths;
use super::{ModelShape, TrainShape};

/// What training holds beside what is always there, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) gradients: u64,
    /// What waits for the backward pass.
    pub(super) activations: u64,
    /// What a block or the loss works with, the pool of the ops' buffers, and the tokens.
    pub(super) workspace: u64,
}

impl Held {
    pub(super) fn bytes(self) -> u64 {
        self.gradients + self.activations + self.workspace
    }

    /// With what an op takes meanwhile.
    fn beside(self, bytes: u64) -> Self {
        Self { workspace: self.workspace + bytes, ..self }
    }
}

/// Bytes of a token's id and label, in each row of the step.
const ROW_TOKEN_BYTES: u64 = 4 + 8;
/// Of a micro-batch: id and target, the id as a tensor, and its position twice.
const BATCH_TOKEN_BYTES: u64 = 4 + 8 + 4 + 2 * 4;

/// One micro-batch on its way.
struct Pass<'a> {
    model: &'a ModelShape,
    train: &'a TrainShape,
    widths: Widths,
    /// Whether the gradients of an earlier micro-batch are there.
    goes_on: bool,
}

/// The moment at which a step holds the most.
pub(super) fn most(model: &ModelShape, train: &TrainShape) -> Held {
    let widths = Widths::of(model);
    let passes = [false, true].into_iter().take(if train.micro_batches > 1 { 2 } else { 1 });
    let moments = passes.flat_map(|goes_on| Pass { model, train, widths, goes_on }.moments());
    moments.max_by_key(|held| held.bytes()).unwrap_or_default()
}

impl Pass<'_> {
    fn moments(&self) -> Vec<Held> {
        let layers = self.model.layers;
        let mut all: Vec<Held> = (0..layers).map(|index| self.forward(index)).collect();
        all.push(self.loss());
        all.extend((0..layers).rev().flat_map(|index| self.backward(index)));
        all.push(self.embedding());
        all
    }

    /// Bytes of so many elements of each token.
    fn bytes(&self, width: u64) -> u64 {
        self.train.micro_batch_tokens * width * self.model.element_bytes
    }

    fn held(&self, gradients: u64, activations: u64, width: u64) -> Held {
        let n = self.train.micro_batch_tokens;
        let rows = ROW_TOKEN_BYTES * self.train.micro_batches * n;
        let batch = n * (BATCH_TOKEN_BYTES + self.model.angle_bytes());
        let workspace = self.train.workspace + rows + batch + self.bytes(width);
        Held { gradients, activations, workspace }
    }

    /// What waits of blocks `0..count`: everything, of the last that are kept; the input, of others.
    fn waiting(&self, count: u64) -> u64 {
        let kept = self.train.kept_blocks.min(self.model.layers);
        let recomputed = count.min(self.model.layers - kept);
        let kept = self.bytes(self.widths.saved()) + self.train.passing.attention_forward;
        recomputed * self.bytes(self.model.hidden) + (count - recomputed) * kept
    }

    /// Bytes of the gradients of so many parameters, of those that exist now.
    fn gradients(&self, params: u64) -> u64 {
        let params = if self.goes_on { self.model.trainable_params } else { params };
        params * if self.train.master_weights { 4 } else { self.model.element_bytes }
    }

    /// Parameters whose gradients are there when the backward pass comes to block `index`.
    fn done_above(&self, index: u64) -> u64 {
        let model = self.model;
        let head_and_blocks = if self.train.optimizer_in_backward {
            0
        } else {
            let blocks = model.layers - index - 1;
            model.trainable_head_params + blocks * model.trainable_block_params()
        };
        head_and_blocks + self.tied_embedding()
    }

    /// The embedding's parameters, where it is the head: their gradient begins at the loss.
    fn tied_embedding(&self) -> u64 {
        let model = self.model;
        if model.trainable_head_params == 0 { model.trainable_embedding_params() } else { 0 }
    }

    fn forward(&self, index: u64) -> Held {
        let held = self.held(self.gradients(0), self.waiting(index), self.widths.forward());
        held.beside(self.train.passing.attention_forward)
    }

    /// The last output, normed, and the gradients of both.
    fn loss(&self) -> Held {
        let of_head = self.model.trainable_head_params + self.tied_embedding();
        let held = self.held(
            self.gradients(of_head),
            self.waiting(self.model.layers),
            4 * self.model.hidden,
        );
        // Rows, targets and losses of the tokens.
        let tokens = 16 * self.train.micro_batch_tokens;
        let passing = &self.train.passing;
        held.beside(tokens + passing.loss.max(passing.norm))
    }

    fn backward(&self, index: u64) -> Vec<Held> {
        let done = self.done_above(index);
        let below = index > 0 || self.model.trainable_embedding_params() > 0;
        let (saved, waiting) = (self.widths.saved(), self.waiting(index));
        let recomputed = index < self.model.layers - self.train.kept_blocks.min(self.model.layers);
        // The gradient of its output waits meanwhile.
        let passing = &self.train.passing;
        let again = self
            .held(self.gradients(done), waiting, self.widths.again() + self.model.hidden)
            .beside(passing.attention_forward);
        let moments = self.widths.backward(self.model, passing, below).into_iter().map(|moment| {
            // What was saved counts as activations as long as it is there.
            let own = moment.width.min(saved);
            self.held(
                self.gradients(done + moment.gradients),
                waiting + self.bytes(own),
                moment.width - own,
            )
            .beside(moment.passing)
        });
        moments.chain(recomputed.then_some(again)).collect()
    }

    fn embedding(&self) -> Held {
        let params = if self.train.optimizer_in_backward {
            self.model.trainable_embedding_params()
        } else {
            self.model.trainable_params
        };
        self.held(self.gradients(params), 0, self.model.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Passing;
    use super::super::tests::{TRAIN, small};
    use super::*;

    const N: u64 = 10;
    const B: u64 = 4;

    /// Bytes of the tokens of one micro-batch: ids, labels, targets, positions, angles.
    const TOKENS: u64 = N * (12 + 24 + 4 * 4);

    #[test]
    fn everything_kept_is_most_at_the_loss_or_soon_after() {
        // x, q, k, v, attended, middle, gate, up of 4 blocks.
        let saved = N * B * (2 * 8 + 2 * 8 + 2 * 4 + 2 * 16);
        let held = most(&small(), &TrainShape { workspace: 100_000, ..TRAIN });
        // In the last block's feed-forward: dy, the gradient of gated, gated, and those of gate and
        // up; its own middle and the gradients of the tied embedding are there.
        assert_eq!(held.activations, 4 * saved);
        assert_eq!(held.gradients, 4 * 200);
        assert_eq!(held.workspace, 100_000 + TOKENS + N * B * (8 + 4 * 16));
    }

    #[test]
    fn nothing_kept_is_most_in_the_first_block() {
        let held = most(&small(), &TrainShape { kept_blocks: 0, ..TRAIN });
        // Its own activations, made again, and the gradients of the embedding and of the blocks
        // above it.
        assert_eq!(held.activations, N * B * (2 * 8 + 2 * 8 + 2 * 4 + 2 * 16));
        assert_eq!(held.gradients, 4 * (200 + 3 * 200));
        // dy; the gradient of the gated product, the product, and the gradients of gate and up.
        assert_eq!(held.workspace, TOKENS + N * B * (8 + 4 * 16));
    }

    #[test]
    fn what_ops_take_counts_at_their_moment() {
        let held = |passing| most(&small(), &TrainShape { passing, ..TRAIN });
        let none = held(Passing::NONE);
        // The fullest moment is neither the loss nor a norm, until they take more than the rest.
        let some = Passing { norm: 100, loss: 100, ..Passing::NONE };
        assert_eq!(held(some), none);
        let loss = Passing { loss: 1 << 20, ..Passing::NONE };
        assert!(held(loss).workspace > 1 << 20);
        // What attention leaves waits in each kept block.
        let rows = Passing { attention_forward: 40, attention_backward: 80, ..Passing::NONE };
        assert_eq!(held(rows).bytes() - none.bytes(), 4 * 40);
        let again = TrainShape { kept_blocks: 0, passing: rows, ..TRAIN };
        let before = most(&small(), &TrainShape { passing: Passing::NONE, ..again });
        assert_eq!(most(&small(), &again).bytes() - before.bytes(), 40);
    }

    #[test]
    fn later_micro_batches_run_beside_all_gradients() {
        let once = most(&small(), &TRAIN);
        let twice = most(&small(), &TrainShape { micro_batches: 2, ..TRAIN });
        assert_eq!(twice.gradients, 4 * 1000);
        assert_eq!(twice.workspace - once.workspace, N * 12);
        assert_eq!(twice.activations, once.activations);
    }

    #[test]
    fn a_head_of_its_own_has_its_gradient_before_the_embedding() {
        let model = ModelShape { trainable_head_params: 100, ..small() };
        let held = most(&model, &TrainShape { workspace: 0, micro_batch_tokens: 0, ..TRAIN });
        // At the end, everything.
        assert_eq!(held.gradients, 4 * 1000);
        let early = TrainShape { optimizer_in_backward: true, micro_batch_tokens: 0, ..TRAIN };
        // A block, or the embedding.
        assert_eq!(most(&model, &early).gradients, 4 * 200);
    }
}
