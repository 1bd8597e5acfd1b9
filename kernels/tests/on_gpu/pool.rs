//! What the device holds.

use candle_core::{DType, Tensor};
use chandler_kernels::{device, linear, memory, rms_norm};

use crate::support::{gpu, keep_nearly_all, more_than_left, noise};

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

/// Where a pool's pieces are as they come, it may have room all the same. `CHANDLER_STAND_IN_PIECES`
/// has it have none, and a plain allocation shows that.
#[test]
fn an_output_is_had_from_a_pool_in_pieces() {
    let Some((_alone, gpu)) = gpu() else { return };
    device::give_back(&gpu).unwrap();
    let rows = more_than_left() / 4096;
    let x = Tensor::ones((rows, 1024), DType::F32, &gpu).unwrap();
    let weight = Tensor::ones(1024, DType::F32, &gpu).unwrap();
    keep_nearly_all(&gpu);
    if std::env::var_os("CHANDLER_STAND_IN_PIECES").is_some() {
        let refused = x.zeros_like().unwrap_err();
        assert_eq!(memory::lacking(&refused), Some(None), "{refused}");
    }
    let params = rms_norm::Params { eps: 1e-6, unit_offset: false };
    let y = rms_norm::forward(&x, &weight, params).unwrap();
    assert_eq!(y.dims(), [rows, 1024]);
    drop(y);
    device::give_back(&gpu).unwrap();
}

/// As outputs, so what is to be zero: caches, moments, gradients.
#[test]
fn zeros_are_had_from_a_pool_in_pieces() {
    let Some((_alone, gpu)) = gpu() else { return };
    device::give_back(&gpu).unwrap();
    keep_nearly_all(&gpu);
    let rows = more_than_left() / 4096;
    let zeros = memory::zeros((rows, 1024), DType::F32, &gpu).unwrap();
    assert_eq!(zeros.get(rows - 1).unwrap().to_vec1::<f32>().unwrap(), [0.0; 1024]);
    drop(zeros);
    device::give_back(&gpu).unwrap();
}

/// The stand-in's cuBLAS fails once, as if it lacked memory for itself.
#[test]
fn a_product_is_had_where_the_library_lacks_memory_of_its_own() {
    let Some((_alone, gpu)) = gpu() else { return };
    // SAFETY: the program has loaded the same library already.
    #[expect(unsafe_code, reason = "asks the stand-in")]
    let Ok(library) = (unsafe { libloading::Library::new("libcublas.so.13") }) else { return };
    // SAFETY: the stand-in's function is of this type.
    #[expect(unsafe_code, reason = "asks the stand-in")]
    let fail = unsafe { library.get::<extern "C" fn(i32)>(b"stand_in_cublas_fail") };
    let Ok(fail) = fail else { return };
    let x = noise((16, 32), 1, DType::F32).to_device(&gpu).unwrap();
    let product = || linear::forward(&x, &x, None);
    let (allocation, internal) = (3, 14);
    fail(allocation);
    product().unwrap();
    // Where there is memory, this is what it says.
    fail(internal);
    let error = product().unwrap_err();
    assert_eq!(memory::lacking(&error), None, "{error}");
    keep_nearly_all(&gpu);
    fail(internal);
    product().unwrap();
    device::give_back(&gpu).unwrap();
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
