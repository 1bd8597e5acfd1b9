//! `kernels/cuda/norm.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Device, Result, Tensor};

use super::later::Later;
use super::launch::{Launch, address, arguments, suffix};
use super::program::{Program, source};
use super::table::{CHUNK_THREADS, Table};
use super::upload::upload;
use super::{empty, on_gpu};
use crate::adamw::{Clip, Halt};
use crate::device::to_host;

static PROGRAM: Program = source!("norm");

/// The sum of the squares of all elements of all `tensors`, which are f32 or bf16 and contiguous.
/// Waits for the device.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    let sum = on_device(tensors)?.map(|sum| to_host(&sum)?.to_vec1::<f64>()).transpose()?;
    Ok(sum.into_iter().flatten().sum())
}

/// As [`Clip::new`].
pub(crate) fn clip(
    gradients: &[&Tensor],
    losses: &[&Tensor],
    max_norm: f64,
    halt: &Halt,
) -> Result<Option<Clip>> {
    let takes = |tensor: &&Tensor| on_gpu(&[tensor]) && tensor.is_contiguous();
    let is_loss = |loss: &&Tensor| loss.device().is_cuda() && loss.dtype() == DType::F64;
    let all = gradients.iter().all(takes) && losses.iter().all(is_loss);
    if !all || gradients.is_empty() {
        return Ok(None);
    }
    let device = halt.flag().device();
    let sum = match on_device(gradients)? {
        Some(sum) => sum,
        None => Tensor::zeros(1, DType::F64, device)?,
    };
    let places: Vec<u8> = losses
        .iter()
        .map(|loss| address(loss).map(u64::to_ne_bytes))
        .collect::<Result<Vec<_>>>()?
        .into_flattened();
    // At least one place: there is no tensor of none.
    let places = if places.is_empty() { vec![0; 8] } else { places };
    let places = upload(&places, places.len(), device)?;
    let (norm, scale) = (empty(1, DType::F64, device)?, empty(1, DType::F32, device)?);
    let arguments = arguments![
        address(&sum)?,
        address(&places)?,
        losses.len() as u32,
        max_norm,
        address(halt.flag())?,
        address(&norm)?,
        address(&scale)?,
    ];
    // SAFETY: a number each, and as many places of losses.
    unsafe { once("norm_clip", 1).run(device, &arguments) }?;
    Ok(Some(Clip { norm: Later::of(&norm)?, scale }))
}

/// The sum of the squares of the elements of each of `tensors`. Waits for the device once.
pub(crate) fn squares_of_each(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let mut all = vec![0.0; tensors.len()];
    for (dtype, table, of) in tables(tensors)? {
        let partials = empty(table.num_places(), DType::F64, tensors[of[0]].device())?;
        squares(dtype, &table, &partials)?;
        for (index, sum) in of.into_iter().zip(by_tensor(&table, &partials, 1)?) {
            all[index] = sum;
        }
    }
    Ok(all)
}

/// Of each tensor of a table, the sums of its partials, which are `width` numbers a place. Waits for
/// the device.
pub(super) fn by_tensor(table: &Table, partials: &Tensor, width: usize) -> Result<Vec<f64>> {
    let (count, device) = (table.ends().len(), partials.device());
    let ends = upload(table.ends(), count, device)?;
    let sums = empty(count * width, DType::F64, device)?;
    let launch = Launch { grid: [count, 1, 1], ..once("norm_by_tensor", CHUNK_THREADS) };
    let arguments = arguments![address(partials)?, address(&ends)?, width as u32, address(&sums)?];
    // SAFETY: there are partials for each place, and sums for each tensor.
    unsafe { launch.run(device, &arguments) }?;
    to_host(&sums)?.to_vec1()
}

/// Tables of the tensors of each dtype that have elements, and which of `tensors` they have.
fn tables(tensors: &[&Tensor]) -> Result<Vec<(DType, Table, Vec<usize>)>> {
    let mut tables = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let (mut table, mut of) = (Table::default(), vec![]);
        for (index, tensor) in tensors.iter().enumerate() {
            let elements = tensor.elem_count();
            if tensor.dtype() == dtype && elements > 0 {
                let mut entry = address(tensor)?.to_ne_bytes().to_vec();
                entry.extend((elements as u64).to_ne_bytes());
                table.push(&entry, elements);
                of.push(index);
            }
        }
        if !of.is_empty() {
            tables.push((dtype, table, of));
        }
    }
    Ok(tables)
}

/// The sum of squares, f64 `[1]`; `None` of no elements.
fn on_device(tensors: &[&Tensor]) -> Result<Option<Tensor>> {
    let tables = tables(tensors)?;
    let places: usize = tables.iter().map(|(_, table, _)| table.num_places()).sum();
    if places == 0 {
        return Ok(None);
    }
    let device = tensors[0].device();
    let partials = empty(places, DType::F64, device)?;
    let mut before = 0;
    for (dtype, table, _) in &tables {
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
