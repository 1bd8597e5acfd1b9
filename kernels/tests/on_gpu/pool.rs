//! What the device holds.

use candle_core::{DType, Tensor};
use chandler_kernels::{device, memory};

use crate::support::gpu;

#[test]
fn what_is_freed_is_kept_until_it_is_given_back() {
    let Some((_alone, gpu)) = gpu() else { return };
    device::give_back(&gpu).unwrap();
    let before = device::pool(&gpu).unwrap();
    let tensor = Tensor::zeros((1024, 1024), DType::F32, &gpu).unwrap();
    let with = device::pool(&gpu).unwrap();
    assert_eq!(with.used, before.used + (4 << 20));
    drop(tensor);
    gpu.synchronize().unwrap();
    let kept = device::pool(&gpu).unwrap();
    assert_eq!((kept.used, kept.reserved), (before.used, with.reserved), "freed, and kept");
    assert!(kept.used_high >= with.used);
    device::give_back(&gpu).unwrap();
    let after = device::pool(&gpu).unwrap();
    assert_eq!((after.used, after.reserved), (before.used, before.reserved));
    device::reset_high_water(&gpu).unwrap();
    assert_eq!(device::pool(&gpu).unwrap().used_high, after.used);
}

#[test]
fn memory_that_is_not_there_is_lacking() {
    let Some((_alone, gpu)) = gpu() else { return };
    let (_, total) = device::free_and_total(&gpu).unwrap();
    let before = device::pool(&gpu).unwrap();
    let refused = Tensor::zeros(total as usize, DType::F32, &gpu).unwrap_err();
    assert_eq!(memory::lacking(&refused), Some(None), "{refused}");
    // What can be had is had as ever.
    Tensor::zeros(16, DType::F32, &gpu).unwrap();
    assert_eq!(device::pool(&gpu).unwrap().used, before.used);
}

#[test]
fn a_limit_is_kept() {
    let Some((mut held, _)) = gpu() else { return };
    // A driver's pool grows by pieces of some MiB.
    let limited = device::open_cuda(0, Some(256 << 20)).unwrap();
    let half = || Tensor::zeros(1 << 25, DType::F32, &limited);
    let first = half().unwrap();
    let _second = half().unwrap();
    assert_eq!(memory::lacking(&half().unwrap_err()), Some(None));
    drop(first);
    half().unwrap();
    // Later tests have one without.
    *held = Some(device::open_cuda(0, None).unwrap());
}

#[test]
fn a_device_has_a_name_of_its_own() {
    let Some((_alone, gpu)) = gpu() else { return };
    assert!(gpu.is_cuda());
    let uuid = device::uuid(0).unwrap();
    assert!(uuid.starts_with("GPU-") && uuid.len() == 40, "{uuid}");
    assert!(device::open_cuda(99, None).is_err());
}
