//! Every step of whole runs, for every architecture.

use candle_core::{DType, Tensor};
use chandler_model::CausalLm;
use chandler_trainer::Trainer;
use chandler_vram::Ledger;
use serde_json::Value;

use crate::support::{MODELS, assert_trajectory, golden, goldens, load, rows, run, settings};

const LOSS: f64 = 2e-5;
const NORM: f64 = 1e-4;

fn l2(tensor: &Tensor) -> f64 {
    let square = tensor.to_dtype(DType::F64).unwrap().sqr().unwrap();
    square.sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

fn assert_final_weights(name: &str, model: &CausalLm, expected: &Value) {
    let mut checked = 0;
    for (_, param) in model.params().iter() {
        let Some(expected) = expected[&param.name]["l2"].as_f64() else { continue };
        let found = l2(&param.value);
        let off = ((found - expected) / expected).abs();
        assert!(off < 1e-5, "{name} {}: l2 {found} not {expected}", param.name);
        checked += 1;
    }
    assert!(checked > 10, "{name}: {checked}");
}

#[test]
fn full_fine_tuning() {
    for name in MODELS {
        let train = golden(name, "train.json");
        let rows = rows(&train["tokenized"]);
        let model = load(name, DType::F32);
        let settings = settings(&train["hp"]);
        let mut trainer = Trainer::new(model, &rows, settings, &Ledger::new()).unwrap();
        let found: Vec<_> = (0..trainer.total_steps()).map(|_| trainer.step().unwrap()).collect();
        assert_trajectory(name, &found, &train["trajectory"], LOSS, NORM);
        assert_final_weights(name, trainer.model(), &train["final_weights"]);
        let decays: Vec<&str> = train["decay_params"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        for (_, param) in trainer.model().params().iter() {
            assert_eq!(param.decays, decays.contains(&param.name.as_str()), "{}", param.name);
        }
    }
}

#[test]
fn low_rank_adapters() {
    for name in MODELS {
        let lora = golden(name, "lora.json");
        let rows = rows(&golden(name, "train.json")["tokenized"]);
        let mut model = load(name, DType::F32);
        model.load_adapter(&goldens().join("goldens").join(name).join("lora_before")).unwrap();
        let found = run(model, &rows, settings(&lora["hp"]));
        assert_trajectory(name, &found, &lora["trajectory"], LOSS, NORM);
    }
}

#[test]
fn packed_rows() {
    for name in MODELS {
        let packed = golden(name, "packed.json");
        let rows = rows(&packed["packed_rows"]);
        let found = run(load(name, DType::F32), &rows, settings(&packed["hp"]));
        assert_trajectory(name, &found, &packed["trajectory"], LOSS, NORM);
    }
}

/// bf16 with f32 master weights, against PyTorch's autocast.
#[test]
fn bf16_stays_within_two_percent() {
    for name in ["smol-llama", "qwen3"] {
        let train = golden(name, "train_bf16_autocast.json");
        let rows = match &train["tokenized"] {
            Value::Null => rows(&golden(name, "train.json")["tokenized"]),
            tokenized => rows(tokenized),
        };
        let hp = match &train["hp"] {
            Value::Null => golden(name, "train.json")["hp"].clone(),
            hp => hp.clone(),
        };
        let found = run(load(name, DType::BF16), &rows, settings(&hp));
        assert_trajectory(name, &found, &train["trajectory"], 0.02, 0.25);
    }
}
