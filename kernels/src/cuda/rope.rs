//! `kernels/cuda/rope.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, WARP, address, address_or_null, arguments, empty, suffix};
use super::program::{Program, source};
use super::rms_norm::weight_sum;
use crate::rms_norm::Params;

static PROGRAM: Program = source!("rope");

/// Rows whose gradients of the norm's weight are summed before the sums are.
const CHUNK_ROWS: usize = 256;
/// Rows that a block without them works on.
const ROWS: usize = 8;

/// Heads side by side for each token, the tokens wherever their stride has them.
struct Heads {
    tensor: Tensor,
    /// Elements from token to token.
    stride: u64,
}

impl Heads {
    fn of(x: &Tensor) -> Result<Self> {
        let (_, heads, head_dim) = x.dims3()?;
        let fits = x.stride()[1..] == [head_dim, 1] || (heads == 1 && x.stride()[2] == 1);
        let tensor = if fits { x.clone() } else { x.contiguous()? };
        let stride = tensor.stride()[0] as u64;
        Ok(Self { tensor, stride })
    }
}

/// `x [N, H, D]`, turned by the angles times `direction`, which is 1 or -1.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    let (cos, sin, x) = (cos.contiguous()?, sin.contiguous()?, Heads::of(x)?);
    let y = empty(x.tensor.dims(), x.tensor.dtype(), x.tensor.device())?;
    let lanes = heads * head_dim / 2 * x.tensor.dtype().size_in_bytes();
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rope_rotate_{}", suffix(x.tensor.dtype())),
        head_dim: None,
        grid: [tokens, 1, 1],
        block: lanes.div_ceil(16).next_multiple_of(WARP).clamp(WARP, 256),
        shared: 0,
    };
    let arguments = arguments![
        address(&x.tensor)?,
        address(&cos)?,
        address(&sin)?,
        address(&y)?,
        heads as u32,
        head_dim as u32,
        x.stride,
        (heads * head_dim) as u64,
        direction,
    ];
    // SAFETY: x has tokens a stride apart, y side by side, and there is an angle for each.
    unsafe { launch.run(y.device(), &arguments) }?;
    Ok(y)
}

pub(crate) fn forward_normed(
    raw: &Tensor,
    weight: &Tensor,
    norm: Params,
    [cos, sin]: [&Tensor; 2],
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = raw.dims3()?;
    let (cos, sin, raw) = (cos.contiguous()?, sin.contiguous()?, Heads::of(raw)?);
    let weight = weight.to_dtype(raw.tensor.dtype())?.contiguous()?;
    let y = empty(raw.tensor.dims(), raw.tensor.dtype(), raw.tensor.device())?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rope_normed_forward_{}", suffix(y.dtype())),
        head_dim: None,
        grid: [(tokens * heads).div_ceil(ROWS), 1, 1],
        block: 256,
        shared: 0,
    };
    let arguments = arguments![
        address(&raw.tensor)?,
        address(&weight)?,
        address(&cos)?,
        address(&sin)?,
        address(&y)?,
        tokens as u64,
        heads as u32,
        head_dim as u32,
        raw.stride,
        (heads * head_dim) as u64,
        norm.eps as f32,
        u32::from(norm.unit_offset),
    ];
    // SAFETY: as for `rotate`; the weight is as wide as a head.
    unsafe { launch.run(y.device(), &arguments) }?;
    Ok(y)
}

/// Gradients of `raw` and, in f32, of the norm's weight.
pub(crate) fn backward_normed(
    raw: &Tensor,
    weight: &Tensor,
    norm: Params,
    [cos, sin]: [&Tensor; 2],
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (tokens, heads, head_dim) = raw.dims3()?;
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    let (raw, dy) = (Heads::of(raw)?, Heads::of(dy)?);
    let (dtype, device) = (raw.tensor.dtype(), raw.tensor.device());
    let weight = weight.to_dtype(dtype)?.contiguous()?;
    let chunk_rows = if wants_weight { CHUNK_ROWS } else { ROWS };
    let chunks = (tokens * heads).div_ceil(chunk_rows);
    let d_raw = empty(raw.tensor.dims(), dtype, device)?;
    let partial =
        wants_weight.then(|| empty((chunks, head_dim), DType::F32, device)).transpose()?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rope_normed_backward_{}", suffix(dtype)),
        head_dim: None,
        grid: [chunks, 1, 1],
        block: 256,
        shared: if wants_weight { 32 * head_dim } else { 0 },
    };
    let arguments = arguments![
        address(&raw.tensor)?,
        address(&weight)?,
        address(&cos)?,
        address(&sin)?,
        address(&dy.tensor)?,
        address(&d_raw)?,
        address_or_null(partial.as_ref())?,
        tokens as u64,
        heads as u32,
        head_dim as u32,
        raw.stride,
        dy.stride,
        (heads * head_dim) as u64,
        chunk_rows as u32,
        norm.eps as f32,
        u32::from(norm.unit_offset),
    ];
    // SAFETY: as for `rotate`; there is a row of sums for each chunk where the weight's gradient is
    // wanted.
    unsafe { launch.run(device, &arguments) }?;
    let dw = partial.map(|partial| weight_sum(&PROGRAM, "rope_weight_sum", &partial));
    Ok((d_raw, dw.transpose()?))
}
