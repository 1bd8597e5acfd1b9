//! One forward and backward pass over the model's chain.
//!
//! A block is *kept* (what its backward pass needs stays) or *recomputed* (only its input stays,
//! and its forward pass runs once more, but for what leads to its output alone). Blocks are kept from the end of the chain, whose
//! activations live the shortest.

use candle_core::Tensor;
use chandler_model::{CausalLm, Gradients, Input, ParamId, Pending, SavedBlock};

use crate::{MicroBatch, TrainError};

/// What a block leaves behind for its backward pass.
enum Segment {
    Kept(SavedBlock),
    Recomputed { x: Tensor },
}

/// Who follows a pass.
pub(crate) trait Follower {
    /// Activations and gradients that are alive, in bytes, whenever that changes.
    fn holds(&mut self, activations: usize, gradients: usize);

    /// The loss is known, or will be when the device has come so far; the backward pass comes next.
    fn scored(&mut self, score: Pending) -> Result<(), TrainError>;

    /// The gradients of these parameters are complete for this micro-batch.
    fn complete(&mut self, ids: &[ParamId], gradients: &mut Gradients) -> Result<(), TrainError>;
}

/// Adds the gradients of `loss_sum · loss_scale` over `batch` to `gradients`.
pub(crate) fn forward_backward(
    model: &CausalLm,
    batch: &MicroBatch,
    loss_scale: f64,
    kept_blocks: usize,
    gradients: &mut Gradients,
    follower: &mut dyn Follower,
) -> Result<(), TrainError> {
    let input = model.input(&batch.input_ids, batch.layout.clone())?;
    let mut x = model.embed(&input)?;
    let mut segments = Vec::with_capacity(model.num_blocks());
    let mut bytes = 0;
    for index in 0..model.num_blocks() {
        let (y, segment) = forward(model, index, x, &input, kept_blocks)?;
        bytes += segment.bytes();
        follower.holds(bytes, gradients.bytes());
        segments.push(segment);
        x = y;
    }
    let (score, dx) = model.loss_backward(&x, &batch.targets, loss_scale, gradients)?;
    follower.scored(score)?;
    drop(x);
    follower.complete(&model.params_of_loss_alone(), gradients)?;
    let mut dx = Some(dx);
    while let Some(segment) = segments.pop() {
        // Nothing below is trained.
        let Some(dy) = dx.take() else { break };
        let index = segments.len();
        let own = segment.bytes();
        dx = backward(model, index, segment, &input, &dy, gradients)?;
        bytes -= own;
        follower.holds(bytes, gradients.bytes());
        follower.complete(&model.block_params(index), gradients)?;
    }
    if let Some(dx) = dx {
        model.embed_backward(&input, &dx, gradients)?;
    }
    follower.complete(&[model.embedding_param()], gradients)
}

fn forward(
    model: &CausalLm,
    index: usize,
    x: Tensor,
    input: &Input,
    kept_blocks: usize,
) -> Result<(Tensor, Segment), TrainError> {
    if index + kept_blocks >= model.num_blocks() {
        let (y, saved) = model.block_forward(index, &x, input)?;
        return Ok((y, Segment::Kept(saved)));
    }
    Ok((model.block_forward(index, &x, input)?.0, Segment::Recomputed { x }))
}

fn backward(
    model: &CausalLm,
    index: usize,
    segment: Segment,
    input: &Input,
    dy: &Tensor,
    gradients: &mut Gradients,
) -> Result<Option<Tensor>, TrainError> {
    let saved = match segment {
        Segment::Kept(saved) => saved,
        Segment::Recomputed { x } => model.block_again(index, &x, input)?,
    };
    Ok(model.block_backward(index, saved, input, dy, gradients)?)
}

impl Segment {
    fn bytes(&self) -> usize {
        match self {
            Self::Kept(saved) => saved.bytes(),
            Self::Recomputed { x } => x.elem_count() * x.dtype().size_in_bytes(),
        }
    }
}
