use candle_core::{DType, Result, Tensor};
use chandler_kernels::gemv::{self, Layer};

use crate::buffer::Buffer;
use crate::compare::{random, same, suffix, within};
use crate::emulator::{Program, program};

fn multiply(
    program: &Program,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
    let [from, by] = [Buffer::of_tensor(x)?, Buffer::of_tensor(weight)?];
    let bias = bias.map(Buffer::of_tensor).transpose()?;
    let y = Buffer::unset_of(rows * outputs, dtype);
    let kernel = format!("gemv_{}_{}", suffix(x.dtype()), suffix(dtype));
    let of_warp = if rows == 1 && outputs <= 2048 { 1 } else { 2 };
    let launch = program.launch(&kernel, [outputs.div_ceil(4 * of_warp), 1, 1], 128);
    launch
        .buffer(&from)
        .buffer(&by)
        .optional(bias.as_ref())
        .buffer(&y)
        .value(rows as u32)
        .value(inputs as u32)
        .value(outputs as u32)
        .run();
    y.tensor(&[rows, outputs], dtype)
}

/// `x`, a weight and its bias.
fn inputs(rows: usize, inputs: usize, outputs: usize, dtype: DType) -> Result<[Tensor; 3]> {
    let tensors = random(&[&[rows, inputs], &[outputs, inputs], &[outputs]], dtype)?;
    Ok(tensors.try_into().expect("three"))
}

fn agrees(rows: usize, depth: usize, outputs: usize) -> Result<()> {
    let Some(program) = program("gemv") else { return Ok(()) };
    for dtype in [DType::F32, DType::BF16] {
        let [x, weight, bias] = inputs(rows, depth, outputs, dtype)?;
        for bias in [None, Some(&bias)] {
            let layers = [Layer { weight: &weight, bias }];
            let expected = gemv::forward(&x, &layers)?.remove(0);
            // Terms are as large as the sum itself, or larger.
            within(&multiply(&program, &x, &weight, bias, dtype)?, &expected, 4.0)?;
        }
        let expected = gemv::forward_wide(&x, &weight)?;
        within(&multiply(&program, &x, &weight, None, DType::F32)?, &expected, 4.0)?;
    }
    Ok(())
}

#[test]
fn any_number_of_rows() -> Result<()> {
    for rows in 1..=8 {
        agrees(rows, 520, 19)?;
    }
    Ok(())
}

#[test]
fn any_depth_and_any_number_of_outputs() -> Result<()> {
    for (depth, outputs) in [(1, 1), (7, 8), (100, 3), (1024, 33)] {
        agrees(1, depth, outputs)?;
        agrees(3, depth, outputs)?;
    }
    // More outputs than a warp has one of.
    agrees(1, 40, 2051)
}

/// Whole runs of steps along the inputs, and what is left of one.
#[test]
fn deep_sums() -> Result<()> {
    for depth in [2048, 4360, 2507] {
        agrees(1, depth, 5)?;
        agrees(2, depth, 5)?;
    }
    Ok(())
}

#[test]
fn a_row_has_the_same_bits_beside_any_others() -> Result<()> {
    let Some(program) = program("gemv") else { return Ok(()) };
    for depth in [300, 1037, 2600] {
        let [x, weight, bias] = inputs(8, depth, 9, DType::F32)?;
        let all = multiply(&program, &x, &weight, Some(&bias), DType::F32)?;
        for (first, rows) in [(0, 1), (7, 1), (3, 2), (2, 3), (1, 5)] {
            let some = x.narrow(0, first, rows)?;
            let got = multiply(&program, &some, &weight, Some(&bias), DType::F32)?;
            same(&got, &all.narrow(0, first, rows)?)?;
        }
    }
    Ok(())
}
