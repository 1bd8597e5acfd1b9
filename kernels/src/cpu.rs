//! Candle tensors on the CPU as slices, and slices as tensors: the way into the fast kernels.

use std::marker::PhantomData;
use std::sync::Mutex;

use candle_core::{
    CpuStorage, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use half::bf16;

use crate::gemm::{Element, Output};
use crate::scratch::Plain;

/// An element type of storage that is changed in place.
pub(crate) trait Stored: WithDType {
    /// The elements, if the storage is of this type.
    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! stored {
    ($type:ty, $variant:ident) => {
        impl Stored for $type {
            fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(values) => Some(values),
                    _ => None,
                }
            }
        }
    };
}
stored!(f32, F32);
stored!(bf16, BF16);
stored!(u8, U8);

/// An element type that the CPU kernels compute with.
pub(crate) trait Real: Stored + Element + Output + Plain {
    /// Widens to f32.
    fn wide(self) -> f32;
    /// Rounds from f32.
    fn narrow(x: f32) -> Self;
    /// `values` as f32: themselves, or widened into `wide`, which is as long.
    fn as_wide<'a>(values: &'a [Self], wide: &'a mut [f32]) -> &'a [f32];
}

impl Real for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn as_wide<'a>(values: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        values
    }
}

impl Real for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        crate::simd::to_bf16(x)
    }

    #[inline(always)]
    fn as_wide<'a>(values: &'a [bf16], wide: &'a mut [f32]) -> &'a [f32] {
        for (wide, value) in wide.iter_mut().zip(values) {
            *wide = value.wide();
        }
        wide
    }
}

/// The type that the kernels would compute `tensors` in: that of all of them, if they lie on the
/// CPU.
pub(crate) fn fast_dtype(tensors: &[&Tensor]) -> Option<DType> {
    let dtype = tensors[0].dtype();
    let fits = |t: &&Tensor| t.device().is_cpu() && t.dtype() == dtype;
    (tensors.iter().all(fits) && matches!(dtype, DType::F32 | DType::BF16)).then_some(dtype)
}

/// Calls `f` with the values of contiguous tensors of type `T`.
pub(crate) fn with<T: WithDType, const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> Result<R>,
) -> Result<R> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut guards = Vec::with_capacity(N);
    for tensor in &tensors {
        match tensor {
            Ok(tensor) => guards.push(tensor.storage_and_layout()),
            Err(error) => bail!("{error}"),
        }
    }
    let mut slices = Vec::with_capacity(N);
    for (storage, layout) in &guards {
        let Storage::Cpu(storage) = &**storage else { bail!("a kernel for the CPU") };
        slices.push(values::<T>(storage, layout)?);
    }
    match slices.try_into() {
        Ok(slices) => f(slices),
        Err(_) => bail!("as many slices as tensors"),
    }
}

fn values<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &candle_core::Layout,
) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("a kernel for contiguous tensors"),
    }
}

/// A tensor on the CPU of these values.
pub(crate) fn tensor<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &candle_core::Device::Cpu)
}

/// Refuses to change a tensor in place whose storage one of `inputs` shares: it is locked while it
/// is read.
pub(crate) fn check_apart(changed: &Tensor, inputs: &[&Tensor]) -> Result<()> {
    let (storage, _) = changed.storage_and_layout();
    for input in inputs {
        if std::ptr::eq(&raw const *storage, &raw const *input.storage_and_layout().0) {
            bail!("a tensor {:?} that is changed in place is also an input", changed.dims());
        }
    }
    Ok(())
}

/// Changes a contiguous tensor on the CPU in place: every tensor that shares its storage sees it.
/// `change` must not read the same storage.
pub(crate) fn update<T: Stored>(
    tensor: &Tensor,
    change: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&Update { change: Mutex::new(Some(change)), element: PhantomData::<fn(T)> })
}

struct Update<F, T> {
    change: Mutex<Option<F>>,
    element: PhantomData<fn(T)>,
}

impl<T: Stored, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Update<F, T> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let change = self.change.lock().ok().and_then(|mut change| change.take());
        match (change, T::stored(storage), layout.contiguous_offsets()) {
            (Some(change), Some(values), Some((start, end))) => change(&mut values[start..end]),
            _ => bail!("an update of a contiguous tensor of {:?}", T::DTYPE),
        }
    }
}
