//! `kernels/cuda/rms_norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, address, address_or_null, arguments, empty, suffix, threads_of_row};
use super::program::{Program, source};
use crate::gpu_sizes::NORM_CHUNK_ROWS;
use crate::rms_norm::Params;

static PROGRAM: Program = source!("rms_norm");

pub(crate) fn forward(x: &Tensor, weight: &Tensor, params: Params) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.to_dtype(x.dtype())?.contiguous()?);
    let width = weight.elem_count();
    let y = empty(x.dims(), x.dtype(), x.device())?;
    let launch = by_row("rms_norm_forward", &x, width);
    let arguments = arguments![
        address(&x)?,
        address(&weight)?,
        address(&y)?,
        width as u32,
        params.eps as f32,
        u32::from(params.unit_offset),
    ];
    // SAFETY: x and y have a row of `width` for each block, and the weight is one.
    unsafe { launch.run(x.device(), &arguments) }?;
    Ok(y)
}

/// `x + added`, and its norm.
pub(crate) fn forward_add(
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    params: Params,
) -> Result<[Tensor; 2]> {
    let (x, added) = (x.contiguous()?, added.contiguous()?);
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let width = weight.elem_count();
    let sum = empty(x.dims(), x.dtype(), x.device())?;
    let y = empty(x.dims(), x.dtype(), x.device())?;
    let launch = by_row("rms_norm_forward_add", &x, width);
    let arguments = arguments![
        address(&x)?,
        address(&added)?,
        address(&weight)?,
        address(&sum)?,
        address(&y)?,
        width as u32,
        params.eps as f32,
        u32::from(params.unit_offset),
    ];
    // SAFETY: both inputs and both results have a row of `width` for each block, and the weight is
    // one.
    unsafe { launch.run(x.device(), &arguments) }?;
    Ok([sum, y])
}

/// A block for each row of `x`.
fn by_row(kernel: &str, x: &Tensor, width: usize) -> Launch<'static> {
    Launch {
        program: &PROGRAM,
        kernel: format!("{kernel}_{}", suffix(x.dtype())),
        head_dim: None,
        grid: [x.elem_count() / width, 1, 1],
        block: threads_of_row(width, x.dtype(), 512),
        shared: 0,
    }
}

/// The gradient of `x`, with `residual` added where there is one, and that of the weight, in f32.
pub(crate) fn backward(
    x: &Tensor,
    weight: &Tensor,
    params: Params,
    dy: &Tensor,
    residual: Option<&Tensor>,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let weight = weight.to_dtype(x.dtype())?.contiguous()?;
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let width = weight.elem_count();
    let rows = x.elem_count() / width;
    let chunk_rows = if wants_weight { NORM_CHUNK_ROWS } else { 1 };
    let chunks = rows.div_ceil(chunk_rows);
    let dx = empty(x.dims(), x.dtype(), x.device())?;
    let partial =
        wants_weight.then(|| empty((chunks, width), DType::F32, x.device())).transpose()?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rms_norm_backward_{}", suffix(x.dtype())),
        head_dim: None,
        grid: [chunks, 1, 1],
        block: threads_of_row(width, x.dtype(), 512),
        shared: if wants_weight { 4 * width } else { 0 },
    };
    let arguments = arguments![
        address(&x)?,
        address(&weight)?,
        address(&dy)?,
        address_or_null(residual.as_ref())?,
        address(&dx)?,
        address_or_null(partial.as_ref())?,
        rows as u64,
        width as u32,
        chunk_rows as u32,
        params.eps as f32,
        u32::from(params.unit_offset),
    ];
    // SAFETY: x, dy, residual and dx have `rows` rows of `width`, the weight is one, and there is a
    // row of sums for each chunk where the weight's gradient is wanted.
    unsafe { launch.run(x.device(), &arguments) }?;
    let dw = partial.map(|partial| weight_sum(&PROGRAM, "rms_norm_weight_sum", &partial));
    Ok((dx, dw.transpose()?))
}

/// The sums of the columns of `partial [chunks, width]`, by a kernel that does just that.
pub(super) fn weight_sum(program: &Program, kernel: &str, partial: &Tensor) -> Result<Tensor> {
    let (chunks, width) = partial.dims2()?;
    let sums = empty(width, DType::F32, partial.device())?;
    let launch = Launch {
        program,
        kernel: kernel.to_owned(),
        head_dim: None,
        grid: [width.div_ceil(32), 1, 1],
        block: 512,
        shared: 0,
    };
    let arguments = arguments![address(partial)?, address(&sums)?, chunks as u64, width as u32];
    // SAFETY: the sums are as wide as what is summed.
    unsafe { launch.run(partial.device(), &arguments) }?;
    Ok(sums)
}
