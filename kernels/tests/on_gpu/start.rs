//! Starting the driver.

use std::process::Command;

use chandler_kernels::device;

use crate::support::is_stand_in;

/// What has the stand-in's driver not start.
const INIT: &str = "CHANDLER_STAND_IN_INIT";

/// Each result of the start is seen by a process of its own.
#[test]
fn only_a_driver_that_says_so_has_no_gpu() {
    match std::env::var(INIT).as_deref() {
        Ok("100") => assert_eq!(device::cuda_devices().unwrap(), 0),
        Ok(_) => {
            let error = device::cuda_devices().unwrap_err().to_string();
            assert!(error.contains("CUDA_ERROR_UNKNOWN"), "{error}");
            let error = device::open_cuda(0, None).unwrap_err().to_string();
            assert!(error.contains("CUDA_ERROR_UNKNOWN"), "{error}");
            assert_eq!(device::uuid(0), None);
        }
        Err(_) if !is_stand_in() => {}
        Err(_) => {
            for result in ["100", "999"] {
                let mut again = Command::new(std::env::current_exe().unwrap());
                again.args(["--exact", "start::only_a_driver_that_says_so_has_no_gpu"]);
                let done = again.env(INIT, result).output().unwrap();
                let said = String::from_utf8_lossy(&done.stdout);
                assert!(done.status.success() && said.contains("1 passed"), "{result}: {said}");
            }
        }
    }
}
