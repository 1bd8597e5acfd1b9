//! `kernels/cuda/elementwise.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, address, arguments, empty, suffix, threads_of_row};
use super::program::{Program, source};
use super::rms_norm::weight_sum;

static PROGRAM: Program = source!("elementwise");

/// Rows whose sums are taken before the sums of those.
const CHUNK_ROWS: usize = 512;

fn launch(kernel: &str, dtype: DType, grid: [usize; 3], block: usize) -> Launch<'static> {
    let kernel = format!("elementwise_{kernel}_{}", suffix(dtype));
    Launch { program: &PROGRAM, kernel, head_dim: None, grid, block, shared: 0 }
}

/// `a + b`.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (elements, dtype) = (a.elem_count(), a.dtype());
    let y = empty(a.dims(), dtype, a.device())?;
    let arguments = arguments![address(&a)?, address(&b)?, address(&y)?, elements as u64];
    let blocks = elements.div_ceil(256 * 16 / dtype.size_in_bytes());
    // SAFETY: all three have that many elements.
    unsafe { launch("add", dtype, [blocks, 1, 1], 256).run(a.device(), &arguments) }?;
    Ok(y)
}

/// Adds `bias [O]` to every row of `y [N, O]` in place.
pub(crate) fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    let (rows, width) = y.dims2()?;
    let bias = bias.contiguous()?;
    let arguments = arguments![address(y)?, address(&bias)?, width as u32];
    let threads = threads_of_row(width, y.dtype(), 512);
    // SAFETY: y has a row of `width` for each block, and the bias is one.
    unsafe { launch("add_bias", y.dtype(), [rows, 1, 1], threads).run(y.device(), &arguments) }
}

/// The sums of the columns of `dy [N, O]`, in f32.
pub(crate) fn bias_gradient(dy: &Tensor) -> Result<Tensor> {
    let (rows, width) = dy.dims2()?;
    let dy = dy.contiguous()?;
    let chunks = rows.div_ceil(CHUNK_ROWS);
    let partial = empty((chunks, width), DType::F32, dy.device())?;
    let arguments = arguments![
        address(&dy)?,
        address(&partial)?,
        rows as u64,
        width as u32,
        CHUNK_ROWS as u32,
    ];
    let grid = [width.div_ceil(32), chunks, 1];
    // SAFETY: dy has `rows` of `width`, and there is a row of sums for each chunk of them.
    unsafe { launch("bias_partial", dy.dtype(), grid, 512).run(dy.device(), &arguments) }?;
    weight_sum(&PROGRAM, "elementwise_bias_sum", &partial)
}
