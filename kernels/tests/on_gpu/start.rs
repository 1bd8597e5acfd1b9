//! Starting the driver, and opening a GPU. The stand-in's driver is told by the environment what to be, each
//! time for a process of its own.

use std::process::Command;

use candle_core::{DType, Tensor};
use chandler_kernels::{device, memory};

use crate::support::is_stand_in;

/// Whether this process has a driver that is told so.
fn is_told(variable: &str, value: &str) -> bool {
    std::env::var(variable).is_ok_and(|told| told == value)
}

/// Runs a test of this file in a process whose driver is told so.
#[track_caller]
fn run_again(test: &str, variable: &str, value: &str) {
    if !is_stand_in() {
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("start::{test}")]).env(variable, value);
    let done = again.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{variable}={value}: {said}");
}

#[test]
fn only_a_driver_that_says_so_has_no_gpu() {
    let init = "CHANDLER_STAND_IN_INIT";
    if is_told(init, "100") {
        assert_eq!(device::cuda_devices().unwrap(), 0);
    } else if is_told(init, "999") {
        let error = device::cuda_devices().unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_UNKNOWN"), "{error}");
        let error = device::open_cuda(0, None).unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_UNKNOWN"), "{error}");
        assert_eq!(device::uuid(0), None);
    } else {
        run_again("only_a_driver_that_says_so_has_no_gpu", init, "100");
        run_again("only_a_driver_that_says_so_has_no_gpu", init, "999");
    }
}

#[test]
fn a_card_that_is_too_old_is_told_so() {
    let capability = "CHANDLER_STAND_IN_CAPABILITY";
    if !is_told(capability, "75") {
        return run_again("a_card_that_is_too_old_is_told_so", capability, "75");
    }
    let error = device::open_cuda(0, None).unwrap_err().to_string();
    assert!(error.contains("7.5") && error.contains("8.0"), "{error}");
}

#[test]
fn a_driver_without_pools_keeps_no_limit_and_works() {
    let pools = "CHANDLER_STAND_IN_POOLS";
    if !is_told(pools, "0") {
        return run_again("a_driver_without_pools_keeps_no_limit_and_works", pools, "0");
    }
    let error = device::open_cuda(0, Some(1 << 30)).unwrap_err().to_string();
    assert!(error.contains("memory.limit"), "{error}");
    let gpu = device::open_cuda(0, None).unwrap();
    let ones = (memory::zeros(8, DType::F32, &gpu).unwrap() + 1.0).unwrap();
    assert_eq!(ones.to_vec1::<f32>().unwrap(), [1.0; 8]);
    assert_eq!(device::pool(&gpu), None);
    device::reset_high_water(&gpu).unwrap();
    let (_, total) = device::free_and_total(&gpu).unwrap();
    let refused = memory::zeros(total as usize, DType::F32, &gpu).unwrap_err();
    assert_eq!(memory::lacking(&refused), Some(None), "{refused}");
    drop(Tensor::zeros(16, DType::F32, &gpu).unwrap());
    device::give_back(&gpu).unwrap();
}
