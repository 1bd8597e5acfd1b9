//! Where the fixtures are, and how they are read.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use chandler_model::CausalLm;
use serde_json::Value;

pub(crate) const MODELS: [&str; 7] =
    ["smol-llama", "llama-gqa", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

pub(crate) fn model_folder(name: &str) -> PathBuf {
    fixtures().join("goldens/models").join(name)
}

pub(crate) fn golden_folder(name: &str) -> PathBuf {
    fixtures().join("goldens/goldens").join(name)
}

pub(crate) fn load(name: &str) -> CausalLm {
    CausalLm::load(&model_folder(name), Some(DType::F32), &device()).unwrap()
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn golden(name: &str, file: &str) -> Value {
    json(&golden_folder(name).join(file))
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub(crate) fn labels(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

/// What each token of a document predicts: the next one's label.
pub(crate) fn targets(labels: &[i64]) -> Vec<i64> {
    labels.iter().skip(1).copied().chain([-100]).collect()
}

pub(crate) fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Asserts that a tensor has the statistics that FORMATS.md describes.
pub(crate) fn assert_statistics(name: &str, tensor: &Tensor, expected: &Value, tolerance: f64) {
    let values = flat(tensor);
    let cosdot: f64 = values.iter().enumerate().map(|(i, v)| v * (0.37 * i as f64).cos()).sum();
    let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let scale = expected["l2"].as_f64().unwrap().max(1e-3);
    for (what, found) in [("l2", l2), ("cosdot", cosdot), ("sum", values.iter().sum())] {
        let expected = expected[what].as_f64().unwrap();
        let bound = tolerance * scale * if what == "l2" { 1.0 } else { 10.0 };
        assert!((found - expected).abs() <= bound, "{name}: {what} {found}, not {expected}");
    }
    for (what, found) in [("first4", &values[..4]), ("last4", &values[values.len() - 4..])] {
        let difference = largest_difference(found, &numbers(&expected[what]));
        let bound = tolerance * expected["absmax"].as_f64().unwrap().max(1e-3) * 10.0;
        assert!(difference <= bound, "{name}: {what} {found:?}, not {}", expected[what]);
    }
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

/// Says that a test is not run, and why; what a test prints that passes is shown to nobody.
pub(crate) fn skip(why: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
}
