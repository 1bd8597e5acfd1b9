//! `kernels/cuda/gemv.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, WARP, address, address_or_null, arguments, empty, on_gpu, suffix};
use super::program::{Program, source};

static PROGRAM: Program = source!("gemv");

/// Rows of `x` that the kernel takes.
const MOST_ROWS: usize = 8;
/// Warps of a block.
const WARPS: usize = 4;
/// Outputs of a single row up to which a warp has one of them, else two.
const FEW_OUTPUTS: usize = 2048;

/// Whether the kernel takes these: more rows are a matter for the products.
pub(crate) fn takes(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    let rows = x.dims()[0];
    let same = bias.is_none_or(|bias| bias.dtype() == x.dtype());
    (1..=MOST_ROWS).contains(&rows) && same && on_gpu(&[x, weight])
}

/// `x · weightᵀ + bias`, in `dtype`: that of `x`, or f32.
pub(crate) fn product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let y = empty((rows, outputs), dtype, x.device())?;
    let of_warp = if rows == 1 && outputs <= FEW_OUTPUTS { 1 } else { 2 };
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("gemv_{}_{}", suffix(x.dtype()), suffix(dtype)),
        head_dim: None,
        grid: [outputs.div_ceil(WARPS * of_warp), 1, 1],
        block: WARPS * WARP,
        shared: 0,
    };
    let arguments = arguments![
        address(&x)?,
        address(&weight)?,
        address_or_null(bias.as_ref())?,
        address(&y)?,
        rows as u32,
        inputs as u32,
        outputs as u32,
    ];
    // SAFETY: x has `rows` of `inputs`, the weight `outputs` of them, and y and bias go with that.
    unsafe { launch.run(x.device(), &arguments) }?;
    Ok(y)
}
