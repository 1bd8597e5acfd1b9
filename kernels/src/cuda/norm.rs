//! `kernels/cuda/norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Device, Result, Tensor};

use super::empty;
use super::launch::{Launch, address, address_or_null, arguments, suffix};
use super::program::{Program, source};
use super::table::{CHUNK_THREADS, Table};
use crate::adamw::{Clip, Halt};

static PROGRAM: Program = source!("norm");

/// The sum of the squares of all elements of all `tensors`, which are f32 or bf16 and contiguous.
/// Waits for the device.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let sum = on_device(tensors)?.map(|sum| sum.to_vec1::<f64>()).transpose()?;
    Ok(sum.into_iter().flatten().sum())
}

/// As [`Clip::new`], of tensors as [`sum_of_squares`] takes them.
pub(crate) fn clip(
    gradients: &[&Tensor],
    losses: &[&Tensor],
    max_norm: f64,
    halt: &Halt,
) -> Result<Clip> {
    let device = halt.flag().device();
    let sum = match on_device(gradients)? {
        Some(sum) => sum,
        None => Tensor::zeros(1, DType::F64, device)?,
    };
    // The squares of numbers in f32 do not leave f64, so their sum is a number if all of them are.
    let losses = on_device(losses)?;
    let (norm, scale) = (empty(1, DType::F64, device)?, empty(1, DType::F32, device)?);
    let arguments = arguments![
        address(&sum)?,
        address_or_null(losses.as_ref())?,
        max_norm,
        address(halt.flag())?,
        address(&norm)?,
        address(&scale)?,
    ];
    // SAFETY: a number each.
    unsafe { once("norm_clip", 1).run(device, &arguments) }?;
    Ok(Clip { norm, scale })
}

/// The sum of squares, f64 `[1]`; `None` of no elements.
fn on_device(tensors: &[&Tensor]) -> Result<Option<Tensor>> {
    let Some(first) = tensors.first() else { return Ok(None) };
    let device = first.device();
    let mut by_dtype = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let mut table = Table::default();
        for tensor in tensors.iter().filter(|tensor| tensor.dtype() == dtype) {
            let elements = tensor.elem_count();
            let mut entry = address(tensor)?.to_ne_bytes().to_vec();
            entry.extend((elements as u64).to_ne_bytes());
            table.push(&entry, elements);
        }
        by_dtype.push((dtype, table));
    }
    let places: usize = by_dtype.iter().map(|(_, table)| table.num_places()).sum();
    if places == 0 {
        return Ok(None);
    }
    let partials = empty(places, DType::F64, device)?;
    let mut before = 0;
    for (dtype, table) in by_dtype.iter().filter(|(_, table)| table.num_places() > 0) {
        squares(*dtype, table, &partials.narrow(0, before, table.num_places())?)?;
        before += table.num_places();
    }
    total(&partials, device).map(Some)
}

fn squares(dtype: DType, table: &Table, partials: &Tensor) -> Result<()> {
    let device = partials.device();
    let [entries, places] = table.on(device)?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("norm_squares_{}", suffix(dtype)),
        head_dim: None,
        grid: [table.num_places(), 1, 1],
        block: CHUNK_THREADS,
        shared: 0,
    };
    let arguments = arguments![address(&entries)?, address(&places)?, address(partials)?];
    // SAFETY: the table has the places of whole tensors, and there is a sum for each place.
    unsafe { launch.run(device, &arguments) }
}

fn total(partials: &Tensor, device: &Device) -> Result<Tensor> {
    let sum = empty(1, DType::F64, device)?;
    let arguments = arguments![address(partials)?, partials.elem_count() as u32, address(&sum)?];
    // SAFETY: all partial sums were written by what went to the stream before.
    unsafe { once("norm_total", CHUNK_THREADS).run(device, &arguments) }?;
    Ok(sum)
}

/// A kernel of one block.
fn once(kernel: &str, threads: usize) -> Launch<'static> {
    Launch {
        program: &PROGRAM,
        kernel: kernel.to_owned(),
        head_dim: None,
        grid: [1, 1, 1],
        block: threads,
        shared: 0,
    }
}
