//! A safetensors file in memory: what is written while the tensors change already.

use std::fmt;
use std::path::Path;

use candle_core::{CpuStorage, Storage, Tensor};
use chandler_durable::{Fs, write_sized_with};
use chandler_kernels::device;
use rayon::prelude::*;
use safetensors::tensor::View;

use super::writer::{bytes_of, header};
use crate::ModelError;

/// What the file begins at in memory, so that a disk may take it from where it lies.
const ALIGNMENT: usize = 4096;

/// The bytes of a safetensors file.
pub struct SafetensorsImage {
    room: Vec<u8>,
    /// Where in `room` it begins.
    begin: usize,
    header: Vec<u8>,
    len: usize,
}

impl SafetensorsImage {
    /// Bytes of memory that an image of these tensors takes.
    pub fn bytes_needed(tensors: &[(&str, &Tensor)]) -> usize {
        let data = tensors.iter().map(|(_, tensor)| bytes_in(tensor));
        ALIGNMENT + 8 + header(tensors, None).len() + data.sum::<usize>()
    }

    /// An image of the tensors as they are, each in its own type and in the order given.
    pub fn new(tensors: &[(&str, &Tensor)]) -> Result<Self, ModelError> {
        let header = header(tensors, None);
        let data = tensors.iter().map(|(_, tensor)| bytes_in(tensor));
        let len = 8 + header.len() + data.sum::<usize>();
        let room = vec![0; len + ALIGNMENT];
        let begin = room.as_ptr().align_offset(ALIGNMENT);
        let mut image = Self { room, begin, header, len };
        image.fill(tensors)?;
        Ok(image)
    }

    /// The same for later values of the same tensors: an error where names, shapes or types are others.
    pub fn update(&mut self, tensors: &[(&str, &Tensor)]) -> Result<(), ModelError> {
        if header(tensors, None) != self.header {
            let other = "an image of other tensors cannot become one of these";
            return Err(candle_core::Error::msg(other).into());
        }
        self.fill(tensors)
    }

    fn fill(&mut self, tensors: &[(&str, &Tensor)]) -> Result<(), ModelError> {
        let file = &mut self.room[self.begin..self.begin + self.len];
        let (length, file) = file.split_at_mut(8);
        length.copy_from_slice(&(self.header.len() as u64).to_le_bytes());
        let (header, mut rest) = file.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        let mut places = Vec::with_capacity(tensors.len());
        for (_, tensor) in tensors {
            let (place, behind) = rest.split_at_mut(bytes_in(tensor));
            places.push((place, *tensor));
            rest = behind;
        }
        places.into_par_iter().try_for_each(|(place, tensor)| put(place, tensor))
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.room.len()
    }

    /// Writes it to `path`.
    pub fn write(&self, fs: &dyn Fs, path: &Path) -> Result<(), ModelError> {
        let file = &self.room[self.begin..self.begin + self.len];
        write_sized_with(fs, path, file.len() as u64, |to| to.write_all(file))?;
        Ok(())
    }
}

impl fmt::Debug for SafetensorsImage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "SafetensorsImage({} bytes)", self.len)
    }
}

fn bytes_in(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

/// The tensor's values, as they are in a file.
fn put(place: &mut [u8], tensor: &Tensor) -> Result<(), ModelError> {
    let tensor = device::to_host(tensor)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::U8(values)) => place.copy_from_slice(&values[range]),
        Storage::Cpu(CpuStorage::F32(values)) => place.copy_from_slice(bytes_of(&values[range])),
        Storage::Cpu(CpuStorage::BF16(values)) => place.copy_from_slice(bytes_of(&values[range])),
        _ => place.copy_from_slice(&View::data(&tensor)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use chandler_durable::RealFs;

    use super::*;
    use crate::write_safetensors;

    #[test]
    fn an_image_is_the_file_that_would_have_been_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let tensor = |begin: u32, dtype: DType| {
            let values = Tensor::arange(begin, begin + 6, &Device::Cpu).unwrap();
            values.to_dtype(dtype).unwrap().reshape((2, 3)).unwrap()
        };
        let of = |begin: u32| {
            [DType::F32, DType::BF16, DType::U8, DType::F64].map(|dtype| tensor(begin, dtype))
        };
        let named = |tensors: &[Tensor]| -> Vec<(String, Tensor)> {
            let turned = tensors.iter().map(|t| t.t().unwrap()).chain(tensors.iter().cloned());
            turned.enumerate().map(|(index, t)| (index.to_string(), t)).collect()
        };
        let mut image: Option<SafetensorsImage> = None;
        for begin in [0, 7] {
            let tensors = named(&of(begin));
            let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (&**n, t)).collect();
            match &mut image {
                None => image = Some(SafetensorsImage::new(&tensors).unwrap()),
                Some(image) => image.update(&tensors).unwrap(),
            }
            let image = image.as_ref().unwrap();
            assert_eq!(image.bytes(), SafetensorsImage::bytes_needed(&tensors));
            write_safetensors(&RealFs, &path("written"), &tensors, None).unwrap();
            image.write(&RealFs, &path("image")).unwrap();
            let [written, imaged] = ["written", "image"].map(|n| std::fs::read(path(n)).unwrap());
            assert!(written == imaged, "of {begin}");
        }
        let other = tensor(0, DType::F32);
        assert!(image.unwrap().update(&[("other", &other)]).is_err());
    }
}
