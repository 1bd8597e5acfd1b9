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
    #[cfg(feature = "cuda")]
    left: Option<gpu::Left>,
    /// Of the output, once that and its gradient are known.
    #[cfg(feature = "cuda")]
    rows: Option<gpu::Rows>,
}

impl Kept {
    /// Bytes that it keeps.
    #[cfg(feature = "cuda")]
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let left = self.left.as_ref().map_or(0, |left| bytes(&left.log_sum_exp));
        let rows = self.rows.as_ref().map_or(0, |rows| match rows {
            gpu::Rows::Outputs(tensor) | gpu::Rows::Sums(tensor) => bytes(tensor),
        });
        left + rows
    }

    /// Bytes that it keeps: none, for only a GPU's forward pass leaves something.
    #[cfg(not(feature = "cuda"))]
    pub fn bytes(&self) -> usize {
        0
    }

    /// Takes what [`backward_kept`] needs of the output `y [N, H, D]` and its gradient, after which
    /// `y` may go.
    #[cfg(feature = "cuda")]
    pub fn with_output(self, y: &Tensor, dy: &Tensor) -> Result<Self> {
        let Some(left) = self.left else { return Ok(self) };
        let rows = if left.wants_output {
            gpu::Rows::Outputs(y.clone())
        } else {
            gpu::Rows::Sums(gpu::delta(dy, y)?)
        };
        Ok(Self { left: Some(left), rows: Some(rows) })
    }

    /// Takes what [`backward_kept`] needs of the output and its gradient: nothing here.
    #[cfg(not(feature = "cuda"))]
    pub fn with_output(self, _y: &Tensor, _dy: &Tensor) -> Result<Self> {
        Ok(self)
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
        let (y, left) = gpu::forward_kept(q, k, v, &documents, params)?;
        return Ok((y, Kept { left: Some(left), rows: None }));
    }
    Ok((forward(q, k, v, cu_seqlens, params)?, Kept::default()))
}

/// [`backward`] with what the forward pass has left, completed by [`Kept::with_output`].
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "nothing is left on a CPU"))]
pub fn backward_kept(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: Params,
    dy: &Tensor,
    kept: &Kept,
) -> Result<[Tensor; 3]> {
    #[cfg(feature = "cuda")]
    if let Kept { left: Some(left), rows: Some(rows) } = kept {
        let documents = super::documents(cu_seqlens, q.dim(0)?)?;
        let _timer = profile::over(Op::AttentionBackward, 0, &[q, k, v, dy]);
        return gpu::backward_kept([q, k, v, dy], &documents, params, &left.log_sum_exp, rows);
    }
    backward(q, k, v, cu_seqlens, params, dy)
}
