//! `kernels/cuda/norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Device, Result, Tensor};

use super::empty;
use super::launch::{Launch, address, arguments, suffix};
use super::program::{Program, source};
use super::table::{CHUNK_THREADS, Table};

static PROGRAM: Program = source!("norm");

/// The sum of the squares of all elements of all `tensors`, which are f32 or bf16 and contiguous.
/// Waits for the device.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let Some(first) = tensors.first() else { return Ok(0.0) };
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
        return Ok(0.0);
    }
    let partials = empty(places, DType::F64, device)?;
    let mut before = 0;
    for (dtype, table) in by_dtype.iter().filter(|(_, table)| table.num_places() > 0) {
        squares(*dtype, table, &partials.narrow(0, before, table.num_places())?)?;
        before += table.num_places();
    }
    total(&partials, device)
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

fn total(partials: &Tensor, device: &Device) -> Result<f64> {
    let sum = empty(1, DType::F64, device)?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: "norm_total".to_owned(),
        head_dim: None,
        grid: [1, 1, 1],
        block: CHUNK_THREADS,
        shared: 0,
    };
    let arguments = arguments![address(partials)?, partials.elem_count() as u32, address(&sum)?];
    // SAFETY: all partial sums were written by what went to the stream before.
    unsafe { launch.run(device, &arguments) }?;
    Ok(sum.to_vec1::<f64>()?[0])
}
