//! The forward pass where its backward pass follows, and what the one leaves for the other.

use candle_core::{Result, Tensor};

use super::{Params, backward, forward};
#[cfg(feature = "cuda")]
use crate::cuda::attention as gpu;
#[cfg(feature = "cuda")]
use crate::profile::{self, Op};

/// What a forward pass leaves for its backward pass beside the output, on devices where that saves
/// computing it again: nothing on the CPU.
#[derive(Debug, Default)]
pub struct Kept {
    /// `[N, H]`, f32: the log-sum-exp of each row of scores.
    log_sum_exp: Option<Tensor>,
    /// `[N, H]`, f32: `Σ dy · y` of each row, once both are known.
    delta: Option<Tensor>,
}

impl Kept {
    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        let tensors = [&self.log_sum_exp, &self.delta].into_iter().flatten();
        tensors.map(|tensor| 4 * tensor.elem_count()).sum()
    }

    /// Takes what [`backward_kept`] needs of the output `y [N, H, D]` and its gradient, after which
    /// `y` may go.
    pub fn with_output(self, y: &Tensor, dy: &Tensor) -> Result<Self> {
        let Some(log_sum_exp) = self.log_sum_exp else { return Ok(self) };
        let delta = Some(delta(dy, y)?);
        Ok(Self { log_sum_exp: Some(log_sum_exp), delta })
    }
}

/// [`forward`], and what it leaves for [`backward_kept`].
pub fn forward_kept(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: Params,
) -> Result<(Tensor, Kept)> {
    #[cfg(feature = "cuda")]
    if gpu::takes(q, k, v) && params.window != Some(0) {
        let documents = super::documents(cu_seqlens, q.dim(0)?)?;
        let _timer = profile::over(Op::AttentionForward, 0, &[q, k, v]);
        let (y, log_sum_exp) = gpu::forward_kept(q, k, v, &documents, params)?;
        return Ok((y, Kept { log_sum_exp: Some(log_sum_exp), delta: None }));
    }
    Ok((forward(q, k, v, cu_seqlens, params)?, Kept::default()))
}

/// [`backward`] with what the forward pass has left, completed by [`Kept::with_output`].
pub fn backward_kept(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: Params,
    dy: &Tensor,
    kept: &Kept,
) -> Result<[Tensor; 3]> {
    match kept {
        #[cfg(feature = "cuda")]
        Kept { log_sum_exp: Some(log_sum_exp), delta: Some(delta) } => {
            let documents = super::documents(cu_seqlens, q.dim(0)?)?;
            let _timer = profile::over(Op::AttentionBackward, 0, &[q, k, v, dy]);
            gpu::backward_kept([q, k, v, dy], &documents, params, [log_sum_exp, delta])
        }
        _ => backward(q, k, v, cu_seqlens, params, dy),
    }
}

#[cfg(feature = "cuda")]
use gpu::delta;

/// Only a GPU's forward pass leaves something.
#[cfg(not(feature = "cuda"))]
fn delta(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    candle_core::bail!("row sums of {dy:?} and {y:?} in a build without CUDA")
}
