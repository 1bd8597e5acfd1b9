//! The device, and tensors on both sides.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use chandler_kernels::{device, memory};

/// Counters of the pool are those of all tests together, so only one runs at a time.
static ALONE: Mutex<Option<Device>> = Mutex::new(None);

/// The GPU, for one test at a time; `None`, said so, where there is none.
pub(crate) fn gpu() -> Option<(MutexGuard<'static, Option<Device>>, Device)> {
    if device::cuda_devices().unwrap() == 0 {
        // Written, for what a test prints that passes is shown to nobody.
        std::io::stderr().write_all(b"SKIPPED: there is no CUDA device\n").unwrap();
        return None;
    }
    let mut held = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = held.get_or_insert_with(|| device::open_cuda(0, None).unwrap()).clone();
    Some((held, device))
}

/// Whether the GPU is the CPU.
pub(crate) fn is_stand_in() -> bool {
    std::env::var_os("CHANDLER_STAND_IN_CACHE").is_some()
}

/// More bytes than [`keep_nearly_all`] leaves.
pub(crate) fn more_than_left() -> usize {
    if is_stand_in() { 16 << 20 } else { 1 << 30 }
}

/// Has the pool take nearly all that the device has free, in one piece, and keep it. A card gives
/// memory in pieces of some MiB, has tables for it, and perhaps a desktop that wants more.
pub(crate) fn keep_nearly_all(gpu: &Device) {
    let step = 32 << 20;
    let (free, _) = device::free_and_total(gpu).unwrap();
    let most = free as usize - more_than_left() / 2;
    let piece = (0..10).find_map(|less| {
        let taken = Tensor::zeros(most - less * step, DType::U8, gpu);
        taken.inspect_err(|error| assert!(memory::lacking(error).is_some(), "{error}")).ok()
    });
    drop(piece.unwrap());
    gpu.synchronize().unwrap();
    let (left, _) = device::free_and_total(gpu).unwrap();
    assert!(left < more_than_left() as u64, "{left} bytes are left");
}

/// Numbers from -1 to 1 that have no pattern, the same for the same seed.
pub(crate) fn noise(shape: impl Into<Shape>, seed: u64, dtype: DType) -> Tensor {
    let shape = shape.into();
    let value = |index: usize| {
        let mut x = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 32);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x >> 40) as f32 / (1u32 << 23) as f32) - 1.0
    };
    let values: Vec<f32> = (0..shape.elem_count()).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// How far apart two tensors are, relative to the largest value of the second.
#[track_caller]
pub(crate) fn check_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()));
    let flat = |t: &Tensor| -> Vec<f32> {
        let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        t.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (found, expected) = (flat(found), flat(expected));
    let largest = expected.iter().fold(1e-20f32, |most, value| most.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let apart = (found - expected).abs() / largest;
        assert!(apart <= tolerance, "element {index}: {found} and {expected}, {apart:e} apart");
    }
}

/// One rounding of bf16, or the order of a sum in f32.
pub(crate) fn tolerance(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 8e-3 } else { 3e-6 }
}

pub(crate) const DTYPES: [DType; 2] = [DType::F32, DType::BF16];
