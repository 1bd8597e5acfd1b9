//! What layers measure: the norms are right, and nothing else is touched by them.

use candle_core::{DType, Tensor};
use chandler_model::{CausalLm, LoraConfig};
use chandler_trainer::{LayerNorms, MomentsDtype, StepMetrics, TrainSettings, Trainer};
use chandler_vram::Ledger;

use crate::support::{golden, load, rows, settings};

const STEPS: u64 = 5;

/// The golden run of llama-gqa, whose head is its own, with one micro-batch a step.
fn base() -> TrainSettings {
    let train = golden("llama-gqa", "train.json");
    TrainSettings {
        max_steps: Some(STEPS),
        gradient_accumulation_steps: 1,
        weight_decay: 0.1,
        ..settings(&train["hp"])
    }
}

fn with_adapter() -> CausalLm {
    let mut model = load("llama-gqa", DType::F32);
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, use_rslora: false, target_modules: vec![] };
    model.add_lora(lora, 1).unwrap();
    model
}

fn run(model: CausalLm, settings: TrainSettings) -> (Vec<StepMetrics>, Vec<Vec<u32>>) {
    let rows = rows(&golden("llama-gqa", "train.json")["tokenized"]);
    let mut trainer = Trainer::new(model, &rows, settings, &Ledger::new()).unwrap();
    let metrics = (0..STEPS).map(|_| trainer.step().unwrap()).collect();
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        values.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    (metrics, trainer.best_values().into_iter().map(|(_, value)| bits(value)).collect())
}

fn names(layers: &[LayerNorms]) -> Vec<&str> {
    layers.iter().map(|layer| layer.layer.as_str()).collect()
}

/// A run that measures every second step beside one that does not.
fn check(what: &str, model: impl Fn() -> CausalLm, settings: &TrainSettings, layers: &[&str]) {
    let (alone, weights) = run(model(), settings.clone());
    let measuring = TrainSettings { layer_norms_steps: Some(2), ..settings.clone() };
    let (found, same_weights) = run(model(), measuring);
    assert!(weights == same_weights, "{what}: the weights");
    for (alone, found) in alone.iter().zip(&found) {
        let bits = |of: &StepMetrics| (of.loss.to_bits(), of.grad_norm.to_bits());
        assert_eq!(bits(alone), bits(found), "{what}");
        assert!(alone.layers.is_empty(), "{what}");
        let is_due = found.step == 1 || found.step.is_multiple_of(2);
        assert_eq!(names(&found.layers), if is_due { layers } else { &[] }, "{what}");
        if !is_due {
            continue;
        }
        let squares: f64 = found.layers.iter().map(|layer| layer.grad_norm.powi(2)).sum();
        let off = (squares / found.grad_norm.powi(2) - 1.0).abs();
        assert!(off < 1e-9, "{what} step {}: {off}", found.step);
        for LayerNorms { layer, grad_norm, update_norm, weight_norm } in &found.layers {
            assert!(*grad_norm > 0.0, "{what}: {layer}");
            assert!(update_norm.is_some() && weight_norm.is_some(), "{what}: {layer}");
            // The rate of the first step of a warm-up is 0.
            let moves = |norm: f64| norm > 0.0 || found.lr == 0.0;
            assert!(update_norm.is_none_or(moves), "{what}: {layer} {update_norm:?}");
            assert!(weight_norm.is_none_or(|norm| norm > 0.0), "{what}: {layer}");
        }
    }
}

#[test]
fn layers_add_up_to_the_whole_and_nothing_else_changes() {
    let all = ["embed_tokens", "layers.0", "layers.1", "norm", "lm_head"];
    let f32 = || load("llama-gqa", DType::F32);
    let bf16 = || load("llama-gqa", DType::BF16);
    check("usual", f32, &base(), &all);
    let early = TrainSettings { optimizer_in_backward: true, ..base() };
    check("in the backward pass", f32, &early, &all);
    let narrow = TrainSettings { moments: MomentsDtype::Blockwise8, ..base() };
    check("8 bits", f32, &narrow, &all);
    check("masters", bf16, &base(), &all);
    check("stochastic", bf16, &TrainSettings { master_weights: false, ..base() }, &all);
    check("adapter", with_adapter, &base(), &["layers.0", "layers.1"]);
}

/// The sum of the squares of the values whose names begin so.
fn squares(values: &[(String, Tensor)], layer: &str) -> f64 {
    let begins = |name: &str| name.trim_start_matches("model.").starts_with(&format!("{layer}."));
    let of_layer = values.iter().filter(|(name, _)| begins(name));
    of_layer.map(|(_, t)| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()).sum()
}

#[test]
fn an_update_is_as_long_as_the_way_between_the_weights() {
    let rows = rows(&golden("llama-gqa", "train.json")["tokenized"]);
    let values = |trainer: &Trainer| -> Vec<(String, Tensor)> {
        let wide = |value: &Tensor| value.to_dtype(DType::F64).unwrap();
        trainer
            .best_values()
            .iter()
            .map(|(name, value)| ((*name).to_owned(), wide(value)))
            .collect()
    };
    for optimizer_in_backward in [false, true] {
        let settings = TrainSettings {
            layer_norms_steps: Some(1),
            learning_rate: 1e-3,
            warmup_steps: 0,
            optimizer_in_backward,
            ..base()
        };
        let model = load("llama-gqa", DType::F32);
        let mut trainer = Trainer::new(model, &rows, settings, &Ledger::new()).unwrap();
        trainer.step().unwrap();
        let before = values(&trainer);
        let metrics = trainer.step().unwrap();
        let after = values(&trainer);
        let ways: Vec<(String, Tensor)> = before
            .into_iter()
            .zip(&after)
            .map(|((name, before), (_, after))| (name, (after - before).unwrap()))
            .collect();
        assert_eq!(metrics.layers.len(), 5);
        for LayerNorms { layer, update_norm, weight_norm, .. } in &metrics.layers {
            let off =
                |norm: Option<f64>, squares: f64| (norm.unwrap() / squares.sqrt() - 1.0).abs();
            let off = [
                off(*update_norm, squares(&ways, layer)),
                off(*weight_norm, squares(&after, layer)),
            ];
            assert!(off[0] < 1e-3 && off[1] < 1e-9, "{layer}: {off:?}");
        }
    }
}
