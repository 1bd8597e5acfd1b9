//! Which buffers the loss takes, found without computing it.

use candle_core::DType;
use half::bf16;

use super::{buffers, workspace_bytes};
use crate::gpu_sizes;
use crate::rehearsal::Rehearsal;

/// Takes the buffers of [`forward`](super::forward) over `[tokens, vocab, hidden]`, and gives them back.
pub fn rehearse_forward(pool: &mut Rehearsal, size: [usize; 3], dtype: DType) {
    if pool.is_of_gpu() {
        return pool.pass(|passing| &mut passing.loss, gpu_sizes::loss_forward(size, dtype));
    }
    match dtype {
        DType::F32 => buffers::rehearse_losses::<f32>(pool, size),
        DType::BF16 => buffers::rehearse_losses::<bf16>(pool, size),
        _ => rehearse_composed(pool, size, dtype),
    }
}

/// Takes the buffers of [`forward_backward`](super::forward_backward) over `[tokens, vocab, hidden]`, and gives them back;
/// `trains` says whether the gradient of the head is wanted.
pub fn rehearse_forward_backward(
    pool: &mut Rehearsal,
    size: [usize; 3],
    dtype: DType,
    trains: bool,
) {
    if pool.is_of_gpu() {
        return pool.pass(|passing| &mut passing.loss, gpu_sizes::loss_with_gradients(size, dtype));
    }
    match dtype {
        DType::F32 => buffers::rehearse_gradients::<f32>(pool, size, trains),
        DType::BF16 => buffers::rehearse_gradients::<bf16>(pool, size, trains),
        _ => rehearse_composed(pool, size, dtype),
    }
}

/// candle's own ops have no pool; what they take at most counts as one buffer.
fn rehearse_composed(pool: &mut Rehearsal, [tokens, vocab, hidden]: [usize; 3], dtype: DType) {
    let taken = pool.take::<u8>(workspace_bytes(tokens, vocab, hidden, dtype, true));
    pool.give(taken);
}
