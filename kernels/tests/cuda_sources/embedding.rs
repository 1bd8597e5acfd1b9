use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::embedding;
use half::bf16;

use crate::buffer::Buffer;
use crate::compare::{DTYPES, random, row_threads, same, suffix};
use crate::emulator::{Launch, Program, program};

fn rounded(scale: Option<f64>, dtype: DType) -> f32 {
    match (scale, dtype) {
        (None, _) => 1.0,
        (Some(scale), DType::BF16) => bf16::from_f64(scale).to_f32(),
        (Some(scale), _) => scale as f32,
    }
}

fn forward(program: &Program, table: &Tensor, ids: &[u32], scale: Option<f64>) -> Result<Tensor> {
    let (width, dtype) = (table.dim(1)?, table.dtype());
    let (rows, list) = (Buffer::of_tensor(table)?, Buffer::of(ids));
    let y = Buffer::unset_of(ids.len() * width, dtype);
    let kernel = format!("embedding_forward_{}", suffix(dtype));
    let launch = program.launch(&kernel, [ids.len(), 1, 1], row_threads(width, dtype, 256));
    launch
        .buffer(&rows)
        .buffer(&list)
        .buffer(&y)
        .value(width as u32)
        .value(rounded(scale, dtype))
        .run();
    y.tensor(&[ids.len(), width], dtype)
}

/// Distinct ids, where the tokens of each begin, and the tokens.
fn by_row(ids: &[u32], skip: Option<u32>) -> [Vec<u32>; 3] {
    let mut sorted: Vec<(u32, u32)> =
        ids.iter().copied().zip(0..).filter(|(id, _)| Some(*id) != skip).collect();
    sorted.sort_unstable();
    let (mut rows, mut offsets) = (vec![], vec![0]);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        rows.push(same[0].0);
        offsets.push(offsets[offsets.len() - 1] + same.len() as u32);
    }
    [rows, offsets, sorted.into_iter().map(|(_, token)| token).collect()]
}

fn add_gradient(
    program: &Program,
    d_table: &Tensor,
    ids: &[u32],
    scale: Option<f64>,
    dy: &Tensor,
    skip: Option<u32>,
) -> Result<Tensor> {
    let width = dy.dim(1)?;
    let (from, to) = (Buffer::of_tensor(dy)?, Buffer::of_tensor(d_table)?);
    let [rows, offsets, tokens] = by_row(ids, skip);
    let lists = [Buffer::of(&rows), Buffer::of(&offsets), Buffer::of(&tokens)];
    let kernel =
        format!("embedding_add_gradient_{}_{}", suffix(dy.dtype()), suffix(d_table.dtype()));
    let launch = program.launch(&kernel, [rows.len(), width.div_ceil(256), 1], 64);
    let launch = lists.iter().fold(launch.buffer(&from).buffer(&to), Launch::buffer);
    launch.value(width as u32).value(rounded(scale, dy.dtype())).run();
    to.tensor(d_table.dims(), d_table.dtype())
}

/// Every product and sum is the CPU's, in its order.
fn agrees(ids: &[u32], width: usize) -> Result<()> {
    let Some(program) = program("embedding") else { return Ok(()) };
    let list = Tensor::new(ids, &Device::Cpu)?;
    for scale in [None, Some(1152f64.sqrt())] {
        for dtype in DTYPES {
            let [table, dy] =
                random(&[&[23, width], &[ids.len(), width]], dtype)?.try_into().expect("two");
            same(
                &forward(&program, &table, ids, scale)?,
                &embedding::forward(&table, &list, scale)?,
            )?;
            for sums in [DType::F32, dtype] {
                for skip in [None, Some(ids[0])] {
                    let d_table = table.to_dtype(sums)?.copy()?;
                    let got = match skip {
                        Some(id) if ids.iter().all(|other| *other == id) => continue,
                        skip => add_gradient(&program, &d_table, ids, scale, &dy, skip)?,
                    };
                    embedding::add_gradient(&d_table, &list, scale, &dy, skip)?;
                    same(&got, &d_table)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn one_token() -> Result<()> {
    agrees(&[22], 64)
}

#[test]
fn tokens_that_repeat() -> Result<()> {
    let ids: Vec<u32> = (0..150u32).map(|i| i * i % 23).collect();
    for width in [1, 7, 64, 300, 1024] {
        agrees(&ids, width)?;
    }
    Ok(())
}
