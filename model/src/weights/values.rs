//! The values of a tensor, from a file to where they stay: read by all threads, and each looked at
//! while it is in the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

/// What one thread reads at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What a tensor may hold.
trait Value: Pod + WithDType {
    fn is_finite(self) -> bool;
}

impl Value for u8 {
    fn is_finite(self) -> bool {
        true
    }
}

macro_rules! value {
    ($($float:ty),*) => {
        $(impl Value for $float {
            fn is_finite(self) -> bool {
                Self::is_finite(self)
            }
        })*
    };
}
value!(bf16, f16, f32, f64);

/// What could not be had of a tensor.
pub(super) enum Unread {
    Io(io::Error),
    /// So many values are infinite or not a number.
    NonFinite(usize),
    Candle(candle_core::Error),
}

/// The tensor of `shape` whose values, of type `stored`, begin at `start` of a file.
pub(super) fn read(
    file: &File,
    start: u64,
    shape: &[usize],
    stored: DType,
) -> Result<Tensor, Unread> {
    match stored {
        DType::U8 => read_as::<u8>(file, start, shape),
        DType::BF16 => read_as::<bf16>(file, start, shape),
        DType::F16 => read_as::<f16>(file, start, shape),
        DType::F32 => read_as::<f32>(file, start, shape),
        _ => read_as::<f64>(file, start, shape),
    }
}

fn read_as<T: Value>(file: &File, start: u64, shape: &[usize]) -> Result<Tensor, Unread> {
    let mut values = vec![T::zeroed(); shape.iter().product()];
    let chunks = values.par_chunks_mut(CHUNK_BYTES / size_of::<T>()).enumerate();
    let non_finite: io::Result<usize> = chunks
        .map(|(number, chunk)| {
            let at = start + (number * CHUNK_BYTES) as u64;
            file.read_exact_at(bytemuck::cast_slice_mut(chunk), at)?;
            Ok(chunk.iter().filter(|value| !value.is_finite()).count())
        })
        .sum();
    match non_finite.map_err(Unread::Io)? {
        0 => Tensor::from_vec(values, shape, &Device::Cpu).map_err(Unread::Candle),
        count => Err(Unread::NonFinite(count)),
    }
}
