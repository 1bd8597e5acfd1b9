//! Transformer ops for candle tensors, each with its backward pass.
//!
//! candle differentiates compositions of its basic ops, but the ops that a transformer is made of
//! (`rms_norm`, `rope`, attention, gated activations, the loss over a large vocabulary) either have
//! no gradient there or keep far more memory than they need. Here every op is a plain pair,
//! `forward(inputs) -> output` and `backward(inputs, output gradient) -> input gradients`, that a
//! model's own backward pass calls in turn. What a backward pass needs is an argument of it, so the
//! caller decides what is kept and what is computed again, and a gradient that nobody asked for is
//! never computed.
//!
//! Shapes: activations are flat, `[N tokens, …]`. Several documents lie end to end, divided by
//! `cu_seqlens` as in FlashAttention's variable-length interface, so no op ever sees padding.
//!
//! | letter | meaning |
//! |---|---|
//! | N | tokens of the micro-batch |
//! | E | embedding (hidden) width |
//! | F | feed-forward width |
//! | H, K | query heads, key/value heads |
//! | D | head dimension |
//! | V | vocabulary |
//!
//! All ops take f32, f64, bf16 and f16 tensors on any candle device. Half-precision inputs are
//! widened to f32 inside the op wherever a sum or an exponential is taken, and the result is
//! rounded once.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use chandler_kernels::rms_norm;
//!
//! # fn main() -> candle_core::Result<()> {
//! let x = Tensor::new(&[[3f32, 4.0]], &Device::Cpu)?;
//! let weight = Tensor::new(&[1f32, 1.0], &Device::Cpu)?;
//! let norm = rms_norm::Params { eps: 1e-6, unit_offset: false };
//! let y = rms_norm::forward(&x, &weight, norm)?;
//! let dy = y.ones_like()?;
//! let (dx, dw) = rms_norm::backward(&x, &weight, norm, &dy, true)?;
//! assert_eq!((dx.dims(), dw.map(|d| d.dims().to_vec())), (&[1, 2][..], Some(vec![2])));
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

// Named so that its AVX-512 kernels are switched on in the `gemm` that candle's matmul uses.
use ::gemm as _;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod autograd;
mod bias;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod decode_attention;
pub mod device;
pub mod elementwise;
pub mod embedding;
mod fresh;
mod gemm;
pub mod gemv;
mod gpu_sizes;
pub mod graph;
pub mod linear;
pub mod linear_cross_entropy;
pub mod logits;
pub mod memory;
#[cfg(not(feature = "cuda"))]
mod no_cuda;
pub mod profile;
pub mod rehearsal;
pub mod rms_norm;
pub mod rope;
pub mod scratch;
mod simd;
mod tasks;

#[cfg(test)]
mod check;
#[cfg(test)]
mod check_fast;

use candle_core::DType;

pub use gemm::{Instructions, instructions};

/// The dtype in which sums, exponentials and statistics of `dtype` are computed: f64 for f64, f32
/// for everything else.
pub fn accumulation_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
