//! Writing tensors, one at a time, so that a model of many gigabytes needs no second copy.

use std::io::{self, Write};
use std::path::Path;

use bytemuck::NoUninit;
use candle_core::{CpuStorage, D, DType, Storage, Tensor};
use chandler_durable::{Fs, write_file, write_sized_with};
use safetensors::tensor::{TensorInfo, View};
use serde_json::{Map, Value, json};

use crate::ModelError;

/// Above this, a model is written in shards, as transformers does.
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// Writes `tensors` to one file in the order given, each converted to `dtype` or, without one, in
/// its own.
pub fn write_safetensors(
    fs: &dyn Fs,
    path: &Path,
    tensors: &[(&str, &Tensor)],
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    check_range(tensors, dtype)?;
    write_one(fs, path, tensors, dtype)
}

fn write_one(
    fs: &dyn Fs,
    path: &Path,
    tensors: &[(&str, &Tensor)],
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    let header = header(tensors, dtype);
    let size_of = |tensor: &Tensor| dtype.unwrap_or(tensor.dtype()).size_in_bytes();
    let bytes = |(_, tensor): &(&str, &Tensor)| (tensor.elem_count() * size_of(tensor)) as u64;
    write_sized_with(fs, path, tensors.iter().map(bytes).sum(), |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (_, tensor) in tensors {
            write_tensor(file, tensor, dtype.unwrap_or(Tensor::dtype(tensor)))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Writes a model's tensors to `folder`: `model.safetensors`, or shards of at most `max_bytes` and
/// their index.
pub fn write_shards(
    fs: &dyn Fs,
    folder: &Path,
    tensors: &[(&str, &Tensor)],
    dtype: DType,
    max_bytes: usize,
) -> Result<(), ModelError> {
    check_range(tensors, Some(dtype))?;
    let bytes = |tensor: &Tensor| tensor.elem_count() * dtype.size_in_bytes();
    let mut shards: Vec<Vec<(&str, &Tensor)>> = vec![vec![]];
    let mut room = max_bytes;
    for (name, tensor) in tensors {
        let size = bytes(tensor);
        if size > room && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(vec![]);
            room = max_bytes;
        }
        room = room.saturating_sub(size);
        shards.last_mut().expect("there is always one").push((name, tensor));
    }
    if let [only] = shards.as_slice() {
        return write_one(fs, &folder.join("model.safetensors"), only, Some(dtype));
    }
    let mut weight_map = Map::new();
    let count = shards.len();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        write_one(fs, &folder.join(&file), shard, Some(dtype))?;
        weight_map.extend(shard.iter().map(|(name, _)| ((*name).to_owned(), json!(file))));
    }
    let total_size: usize = tensors.iter().map(|(_, tensor)| bytes(tensor)).sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let path = folder.join("model.safetensors.index.json");
    write_file(fs, &path, format!("{index:#}\n").as_bytes())?;
    Ok(())
}

/// Half of the distance from f16's largest number to what would be the next: below it, values are
/// still rounded down.
const BEYOND_F16: f32 = 65_520.0;

/// Whether a value of the tensor would become infinite in f16.
pub(crate) fn is_beyond_f16(tensor: &Tensor) -> candle_core::Result<bool> {
    if tensor.dtype() == DType::F16 || tensor.elem_count() == 0 {
        return Ok(false);
    }
    let largest = tensor.to_dtype(DType::F32)?.abs()?.flatten_all()?.max(D::Minus1)?;
    Ok(largest.to_scalar::<f32>()? >= BEYOND_F16)
}

/// Refuses a type that does not hold the values, before anything is written.
fn check_range(tensors: &[(&str, &Tensor)], dtype: Option<DType>) -> Result<(), ModelError> {
    if dtype != Some(DType::F16) {
        return Ok(());
    }
    for (name, tensor) in tensors {
        if is_beyond_f16(tensor)? {
            return Err(ModelError::OutOfRange { name: (*name).to_owned(), dtype: "f16" });
        }
    }
    Ok(())
}

pub(super) fn header(tensors: &[(&str, &Tensor)], dtype: Option<DType>) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut begin = 0;
    for (name, tensor) in tensors {
        let dtype = dtype.unwrap_or(Tensor::dtype(tensor));
        let end = begin + tensor.elem_count() * dtype.size_in_bytes();
        let info = TensorInfo {
            dtype: dtype.into(),
            shape: tensor.dims().to_vec(),
            data_offsets: (begin, end),
        };
        header.insert((*name).to_owned(), json!(info));
        begin = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The data begins at a multiple of 8, so that readers may map it.
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// Values that are converted and written at a time: what a tensor takes beside itself.
const CHUNK_VALUES: usize = 1 << 18;

fn write_tensor(file: &mut dyn Write, tensor: &Tensor, dtype: DType) -> io::Result<()> {
    let flat = tensor.flatten_all().map_err(io::Error::other)?;
    let count = flat.elem_count();
    for begin in (0..count).step_by(CHUNK_VALUES) {
        let chunk = flat.narrow(0, begin, CHUNK_VALUES.min(count - begin));
        let chunk = chunk.and_then(|chunk| chunk.to_dtype(dtype)).map_err(io::Error::other)?;
        write_chunk(file, &chunk)?;
    }
    Ok(())
}

/// Writes values that lie side by side, those of the usual types from where they lie.
fn write_chunk(file: &mut dyn Write, chunk: &Tensor) -> io::Result<()> {
    let (storage, layout) = chunk.storage_and_layout();
    let (begin, end) = layout.contiguous_offsets().ok_or_else(|| io::Error::other("strided"))?;
    match &*storage {
        Storage::Cpu(CpuStorage::U8(values)) => file.write_all(&values[begin..end]),
        Storage::Cpu(CpuStorage::F32(values)) => file.write_all(bytes_of(&values[begin..end])),
        Storage::Cpu(CpuStorage::BF16(values)) => file.write_all(bytes_of(&values[begin..end])),
        _ => file.write_all(&View::data(chunk)),
    }
}

/// As the format has them: the low byte first.
pub(super) fn bytes_of<T: NoUninit>(values: &[T]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "values lie in memory as in the file") };
    bytemuck::cast_slice(values)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use chandler_durable::RealFs;

    use super::*;

    #[test]
    fn what_f16_does_not_hold_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let of = |value: f32| Tensor::new(&[value, -1.0], &Device::Cpu).unwrap();
        let (small, large) = (of(65_504.0), of(-65_520.0));
        let write = |dtype: DType| {
            let tensors = [("small", &small), ("large", &large)];
            write_shards(&RealFs, folder.path(), &tensors, dtype, 4)
        };
        let refused = write(DType::F16);
        assert!(matches!(refused, Err(ModelError::OutOfRange { name, .. }) if name == "large"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        write(DType::BF16).unwrap();
        assert!(!is_beyond_f16(&small).unwrap());
    }
}
