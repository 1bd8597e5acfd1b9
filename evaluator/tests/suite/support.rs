//! Where the fixtures are, and how they are read.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device};
use chandler_model::CausalLm;
use serde_json::Value;

pub(crate) const MODELS: [&str; 7] =
    ["smol-llama", "llama-gqa", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens")
}

pub(crate) fn golden(name: &str, file: &str) -> Value {
    let path = goldens().join("goldens").join(name).join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn load(name: &str) -> CausalLm {
    CausalLm::load(&goldens().join("models").join(name), Some(DType::F32), &device()).unwrap()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// The CPU, or the GPU where `CHANDLER_TEST_DEVICE` is set: `packaging/cuda/test` does that.
pub(crate) fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || match std::env::var_os("CHANDLER_TEST_DEVICE") {
        Some(_) => chandler_kernels::device::open_cuda(0, None).unwrap(),
        None => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}
