//! Goldens as rows, settings and models.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{DType, Device};
use chandler_data::Row;
use chandler_model::CausalLm;
use chandler_trainer::{Schedule, StepMetrics, TrainSettings, Trainer};
use chandler_vram::Ledger;
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

pub(crate) fn load(name: &str, dtype: DType) -> CausalLm {
    CausalLm::load(&goldens().join("models").join(name), Some(dtype), &device()).unwrap()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub(crate) fn rows(value: &Value) -> Vec<Row> {
    let integers = |value: &Value| -> Vec<i64> {
        value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
    };
    let row = |row: &Value| {
        let input_ids: Vec<u32> = integers(&row["input_ids"]).iter().map(|id| *id as u32).collect();
        let mut labels = integers(&row["labels"]);
        let seq_lengths: Vec<u32> = match &row["seq_lengths"] {
            Value::Null => vec![input_ids.len() as u32],
            lengths => integers(lengths).iter().map(|length| *length as u32).collect(),
        };
        if row["seq_lengths"].is_array() {
            let mut start = 0;
            for length in &seq_lengths {
                labels[start] = -100;
                start += *length as usize;
            }
        }
        let examples = seq_lengths.len() as u32;
        Row { input_ids, labels, seq_lengths, examples }
    };
    value.as_array().unwrap().iter().map(row).collect()
}

pub(crate) fn settings(hp: &Value) -> TrainSettings {
    let number = |key: &str| hp[key].as_f64().unwrap();
    let cosine = Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.0 };
    TrainSettings {
        learning_rate: number("learning_rate"),
        adam_beta1: number("adam_beta1"),
        adam_beta2: number("adam_beta2"),
        adam_epsilon: number("adam_epsilon"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
        lr_scheduler_type: match hp["lr_scheduler_type"].as_str().unwrap() {
            "cosine" => cosine,
            "linear" => Schedule::Linear,
            "constant_with_warmup" => Schedule::ConstantWithWarmup,
            other => panic!("{other}"),
        },
        warmup_steps: number("warmup_steps") as u64,
        max_steps: Some(number("max_steps") as u64),
        per_device_train_batch_size: number("per_device_train_batch_size") as usize,
        gradient_accumulation_steps: number("gradient_accumulation_steps") as usize,
        shuffle: false,
        ..TrainSettings::default()
    }
}

pub(crate) fn run(model: CausalLm, rows: &Vec<Row>, settings: TrainSettings) -> Vec<StepMetrics> {
    let mut trainer = Trainer::new(model, rows, settings, &Ledger::new()).unwrap();
    (0..trainer.total_steps()).map(|_| trainer.step().unwrap()).collect()
}

/// Loss, gradient norm, rate, tokens and accuracy of every step.
pub(crate) fn assert_trajectory(
    name: &str,
    found: &[StepMetrics],
    expected: &Value,
    loss_tolerance: f64,
    norm_tolerance: f64,
) {
    let relative = |found: f64, expected: f64| ((found - expected) / expected).abs();
    let list = |key: &str| numbers(&expected[key]);
    let (losses, norms, rates) = (list("loss"), list("grad_norm"), list("lr"));
    assert_eq!(found.len(), losses.len(), "{name}");
    for (step, metrics) in found.iter().enumerate() {
        let (loss, norm) = (losses[step], norms[step]);
        let off = relative(metrics.loss, loss);
        assert!(off <= loss_tolerance, "{name} step {step}: loss {} not {loss}", metrics.loss);
        let off = relative(metrics.grad_norm, norm);
        assert!(off <= norm_tolerance, "{name} step {step}: norm {} not {norm}", metrics.grad_norm);
        assert!((metrics.lr - rates[step]).abs() <= 1e-12, "{name} step {step}: {}", metrics.lr);
        if let Some(tokens) = expected["num_tokens"].get(step).and_then(Value::as_f64) {
            assert_eq!(metrics.num_tokens as f64, tokens, "{name} step {step}: tokens");
        }
        if let Some(accuracy) = expected["mean_token_accuracy"].get(step).and_then(Value::as_f64) {
            let bound = if loss_tolerance < 1e-3 { 1e-6 } else { 0.1 };
            let off = (metrics.mean_token_accuracy - accuracy).abs();
            assert!(off <= bound, "{name} step {step}: accuracy off by {off}");
        }
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
