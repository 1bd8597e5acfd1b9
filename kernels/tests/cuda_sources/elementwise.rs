use candle_core::{DType, Result, Tensor};
use chandler_kernels::elementwise;

use crate::buffer::Buffer;
use crate::compare::{DTYPES, near, random, row_threads, same, suffix, vector};
use crate::emulator::{Program, program};

/// Of the bias's gradient.
const CHUNK_ROWS: usize = 512;

fn add(program: &Program, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (elements, dtype) = (a.elem_count(), a.dtype());
    let [from, other] = [Buffer::of_tensor(a)?, Buffer::of_tensor(b)?];
    let y = Buffer::unset_of(elements, dtype);
    let kernel = format!("elementwise_add_{}", suffix(dtype));
    let blocks = [elements.div_ceil(256 * vector(dtype)), 1, 1];
    let launch = program.launch(&kernel, blocks, 256).buffer(&from).buffer(&other);
    launch.buffer(&y).value(elements as u64).run();
    y.tensor(a.dims(), dtype)
}

fn add_bias(program: &Program, y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((rows, width), dtype) = (y.dims2()?, y.dtype());
    let [to, added] = [Buffer::of_tensor(y)?, Buffer::of_tensor(bias)?];
    let kernel = format!("elementwise_add_bias_{}", suffix(dtype));
    let launch = program.launch(&kernel, [rows, 1, 1], row_threads(width, dtype, 512));
    launch.buffer(&to).buffer(&added).value(width as u32).run();
    to.tensor(y.dims(), dtype)
}

fn bias_gradient(program: &Program, dy: &Tensor) -> Result<Tensor> {
    let (rows, width) = dy.dims2()?;
    let (chunks, blocks) = (rows.div_ceil(CHUNK_ROWS), width.div_ceil(32));
    let from = Buffer::of_tensor(dy)?;
    let [partial, sum] = [chunks * width, width].map(Buffer::unset::<f32>);
    let kernel = format!("elementwise_bias_partial_{}", suffix(dy.dtype()));
    let launch = program.launch(&kernel, [blocks, chunks, 1], 512).buffer(&from).buffer(&partial);
    launch.value(rows as u64).value(width as u32).value(CHUNK_ROWS as u32).run();
    let launch = program.launch("elementwise_bias_sum", [blocks, 1, 1], 512);
    launch.buffer(&partial).buffer(&sum).value(chunks as u64).value(width as u32).run();
    sum.tensor(&[width], DType::F32)
}

#[test]
fn sums_of_any_shape() -> Result<()> {
    let Some(program) = program("elementwise") else { return Ok(()) };
    for (rows, width) in [(1, 1), (3, 5), (7, 300), (1100, 36)] {
        for dtype in DTYPES {
            let of = [rows, width];
            let [a, b, bias] = random(&[&of, &of, &[width]], dtype)?.try_into().expect("three");
            same(&add(&program, &a, &b)?, &elementwise::add(&a, &b)?)?;
            let rows_of_bias = bias.broadcast_as(a.dims())?.contiguous()?;
            same(&add_bias(&program, &a, &bias)?, &elementwise::add(&a, &rows_of_bias)?)?;
            let expected = a.to_dtype(DType::F64)?.sum(0)?.to_dtype(DType::F32)?;
            near(&bias_gradient(&program, &a)?, &expected)?;
        }
    }
    Ok(())
}
