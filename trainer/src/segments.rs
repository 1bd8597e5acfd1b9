//! One forward and backward pass over the model's chain.
//!
//! A block is *kept* (what its backward pass needs stays) or *recomputed* (only its input stays,
//! and its forward pass runs once more). Blocks are kept from the end of the chain, whose
//! activations live the shortest.

use candle_core::Tensor;
use chandler_model::{CausalLm, Gradients, Input, SavedBlock, Score};

use crate::{MicroBatch, TrainError};

/// What a block leaves behind for its backward pass.
enum Segment {
    Kept(SavedBlock),
    Recomputed { x: Tensor },
}

/// Adds the gradients of `loss_sum · loss_scale` over `batch` to `gradients`.
///
/// `holds` hears how many bytes of activations are alive, whenever that changes.
pub(crate) fn forward_backward(
    model: &CausalLm,
    batch: &MicroBatch,
    loss_scale: f64,
    kept_blocks: usize,
    gradients: &mut Gradients,
    holds: &mut dyn FnMut(usize),
) -> Result<Score, TrainError> {
    let input = model.input(&batch.input_ids, batch.layout.clone())?;
    let mut x = model.embed(&input)?;
    let mut segments = Vec::with_capacity(model.num_blocks());
    let mut bytes = 0;
    for index in 0..model.num_blocks() {
        let (y, segment) = forward(model, index, x, &input, kept_blocks)?;
        bytes += segment.bytes();
        holds(bytes);
        segments.push(segment);
        x = y;
    }
    let (score, mut dx) = model.loss_backward(&x, &batch.targets, loss_scale, gradients)?;
    drop(x);
    while let Some(segment) = segments.pop() {
        let index = segments.len();
        let own = segment.bytes();
        dx = backward(model, index, segment, &input, &dx, gradients)?;
        bytes -= own;
        holds(bytes);
    }
    model.embed_backward(&input, &dx, gradients)?;
    Ok(score)
}

fn forward(
    model: &CausalLm,
    index: usize,
    x: Tensor,
    input: &Input,
    kept_blocks: usize,
) -> Result<(Tensor, Segment), TrainError> {
    let (y, saved) = model.block_forward(index, &x, input)?;
    let segment = if index + kept_blocks >= model.num_blocks() {
        Segment::Kept(saved)
    } else {
        Segment::Recomputed { x }
    };
    Ok((y, segment))
}

fn backward(
    model: &CausalLm,
    index: usize,
    segment: Segment,
    input: &Input,
    dy: &Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor, TrainError> {
    let saved = match segment {
        Segment::Kept(saved) => saved,
        Segment::Recomputed { x } => model.block_forward(index, &x, input)?.1,
    };
    Ok(model.block_backward(index, &saved, input, dy, gradients)?)
}

impl Segment {
    fn bytes(&self) -> usize {
        match self {
            Self::Kept(saved) => saved.bytes(),
            Self::Recomputed { x } => x.elem_count() * x.dtype().size_in_bytes(),
        }
    }
}
