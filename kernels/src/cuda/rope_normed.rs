//! `kernels/cuda/rope_normed.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Launch, address, address_or_null, arguments, empty, suffix};
use super::program::{Program, source};
use super::rms_norm::weight_sum;
use super::rope::Heads;
use crate::rms_norm::Params;

static PROGRAM: Program = source!("rope_normed");

/// Rows whose gradients of the norm's weight are summed before the sums are.
const CHUNK_ROWS: usize = 1024;
/// Rows that a block works on where that is not wanted.
const ROWS: usize = 64;

/// As the kernels count them.
fn rows([tokens, heads]: [usize; 2]) -> Result<u32> {
    match u32::try_from(tokens * heads) {
        Ok(rows) => Ok(rows),
        Err(_) => bail!("{heads} heads of {tokens} tokens are more than 2^32 rows"),
    }
}

pub(crate) fn forward(
    raw: &Tensor,
    weight: &Tensor,
    norm: Params,
    [cos, sin]: [&Tensor; 2],
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = raw.dims3()?;
    let rows = rows([tokens, heads])?;
    let (cos, sin, raw) = (cos.contiguous()?, sin.contiguous()?, Heads::of(raw)?);
    let weight = weight.to_dtype(raw.tensor.dtype())?.contiguous()?;
    let y = empty(raw.tensor.dims(), raw.tensor.dtype(), raw.tensor.device())?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rope_normed_forward_{}", suffix(y.dtype())),
        head_dim: None,
        grid: [(rows as usize).div_ceil(ROWS), 1, 1],
        block: 256,
        shared: 0,
    };
    let arguments = arguments![
        address(&raw.tensor)?,
        address(&weight)?,
        address(&cos)?,
        address(&sin)?,
        address(&y)?,
        rows,
        heads as u32,
        head_dim as u32,
        raw.stride,
        (heads * head_dim) as u64,
        ROWS as u32,
        norm.eps as f32,
        u32::from(norm.unit_offset),
    ];
    // SAFETY: raw has tokens a stride apart, y side by side, there is an angle for each, and the weight is as
    // wide as a head.
    unsafe { launch.run(y.device(), &arguments) }?;
    Ok(y)
}

/// Gradients of `raw` and, in f32, of the norm's weight.
pub(crate) fn backward(
    raw: &Tensor,
    weight: &Tensor,
    norm: Params,
    [cos, sin]: [&Tensor; 2],
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (tokens, heads, head_dim) = raw.dims3()?;
    let rows = rows([tokens, heads])?;
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    let (raw, dy) = (Heads::of(raw)?, Heads::of(dy)?);
    let (dtype, device) = (raw.tensor.dtype(), raw.tensor.device());
    let weight = weight.to_dtype(dtype)?.contiguous()?;
    let chunk_rows = if wants_weight { CHUNK_ROWS } else { ROWS };
    let chunks = (rows as usize).div_ceil(chunk_rows);
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
        rows,
        heads as u32,
        head_dim as u32,
        raw.stride,
        dy.stride,
        (heads * head_dim) as u64,
        chunk_rows as u32,
        norm.eps as f32,
        u32::from(norm.unit_offset),
    ];
    // SAFETY: as for `forward`; there is a row of sums for each chunk where the weight's gradient is
    // wanted.
    unsafe { launch.run(device, &arguments) }?;
    let dw = partial.map(|partial| weight_sum(&PROGRAM, "rope_normed_weight_sum", &partial));
    Ok((d_raw, dw.transpose()?))
}
