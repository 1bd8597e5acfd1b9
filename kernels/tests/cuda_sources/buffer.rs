//! The memory that kernels work on.

use std::cell::RefCell;

use bytemuck::Pod;
use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

/// Aligned as an allocation of a GPU is, as far as kernels look at it, between two guards that are
/// not numbers: what is read from there shows in the results.
pub(crate) struct Buffer {
    words: RefCell<Vec<u128>>,
    bytes: usize,
}

/// Words on either side.
const GUARD_WORDS: usize = 16;
const GUARD: u128 = u128::MAX;

impl Buffer {
    pub(crate) fn of<T: Pod>(values: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut words = vec![GUARD; 2 * GUARD_WORDS + bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut(&mut words)[GUARD_WORDS * 16..][..bytes.len()]
            .copy_from_slice(bytes);
        Self { words: RefCell::new(words), bytes: bytes.len() }
    }

    /// Of so many elements, none of which is a number yet.
    pub(crate) fn unset<T: Pod>(elements: usize) -> Self {
        Self::of(&vec![u8::MAX; elements * size_of::<T>()])
    }

    /// The same for a dtype.
    pub(crate) fn unset_of(elements: usize, dtype: DType) -> Self {
        Self::unset::<u8>(elements * dtype.size_in_bytes())
    }

    pub(crate) fn of_tensor(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.flatten_all()?;
        Ok(match tensor.dtype() {
            DType::F32 => Self::of(&tensor.to_vec1::<f32>()?),
            DType::BF16 => Self::of(&tensor.to_vec1::<bf16>()?),
            DType::U32 => Self::of(&tensor.to_vec1::<u32>()?),
            DType::U8 => Self::of(&tensor.to_vec1::<u8>()?),
            other => panic!("no kernel takes {other:?}"),
        })
    }

    pub(crate) fn values<T: Pod>(&self) -> Vec<T> {
        let words = self.words.borrow();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let inside = &bytes[GUARD_WORDS * 16..][..self.bytes];
        inside.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    pub(crate) fn tensor(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        match dtype {
            DType::F32 => Tensor::from_vec(self.values::<f32>(), shape, &Device::Cpu),
            DType::BF16 => Tensor::from_vec(self.values::<bf16>(), shape, &Device::Cpu),
            DType::U8 => Tensor::from_vec(self.values::<u8>(), shape, &Device::Cpu),
            other => panic!("no kernel writes {other:?}"),
        }
    }

    /// Where it begins, for a kernel that changes it while nobody else looks.
    pub(crate) fn address(&self) -> u64 {
        self.words.borrow_mut()[GUARD_WORDS..].as_mut_ptr() as u64
    }

    /// Everything, the guards included.
    pub(crate) fn copy(&self) -> Vec<u128> {
        self.words.borrow().clone()
    }

    pub(crate) fn restore(&self, copy: &[u128]) {
        self.words.borrow_mut().copy_from_slice(copy);
    }

    /// Whether nothing was written beside it.
    pub(crate) fn is_sound(&self) -> bool {
        let words = self.words.borrow();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let begin = GUARD_WORDS * 16;
        bytes[..begin].iter().chain(&bytes[begin + self.bytes..]).all(|byte| *byte == u8::MAX)
    }
}
