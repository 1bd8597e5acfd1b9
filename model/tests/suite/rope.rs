//! Configurations that the goldens do not cover: every rope scaling, biases, sliding windows, and
//! both spellings of a configuration, against transformers (`fixtures/rope/make_rope.py`).

use candle_core::{DType, Device};
use chandler_model::{CausalLm, Gradients, ModelConfig, SequenceLayout};
use serde_json::Value;

use crate::support::{fixtures, flat, ids, json, largest_difference, numbers, targets};

fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures().join("rope")).unwrap().map(Result::unwrap);
    let mut names: Vec<String> = folders
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 11);
    names
}

fn check(name: &str, model: &CausalLm, expected: &Value) {
    let input_ids = ids(&expected["input_ids"]);
    let layout = SequenceLayout::new([input_ids.len() as u32]);
    let input = model.input(&input_ids, layout).unwrap();
    let mut x = model.embed(&input).unwrap();
    let mut saved = vec![];
    for index in 0..model.num_blocks() {
        let (y, kept) = model.block_forward(index, &x, &input).unwrap();
        saved.push(kept);
        x = y;
    }
    let logits = model.logits(&x).unwrap();
    let last = logits.narrow(0, input_ids.len() - 4, 4).unwrap();
    let wanted: Vec<f64> =
        expected["last_logits"].as_array().unwrap().iter().flat_map(numbers).collect();
    let difference = largest_difference(&flat(&last), &wanted);
    assert!(difference < 1e-4, "{name} at {} tokens: {difference}", input_ids.len());

    let labels: Vec<i64> = input_ids.iter().map(|id| i64::from(*id)).collect();
    let mut gradients = Gradients::none(model.params());
    let scale = 1.0 / (input_ids.len() - 1) as f64;
    let (score, mut dx) =
        model.loss_backward(&x, &targets(&labels), scale, &mut gradients).unwrap();
    let (loss, wanted) =
        (score.wait().unwrap().loss_sum * scale, expected["loss"].as_f64().unwrap());
    assert!((loss / wanted - 1.0).abs() < 1e-5, "{name}: loss {loss}, not {wanted}");
    for (index, kept) in saved.into_iter().enumerate().rev() {
        dx = model.block_backward(index, kept, &input, &dx, &mut gradients).unwrap().unwrap();
    }
    model.embed_backward(&input, &dx, &mut gradients).unwrap();
    for (id, param) in model.params().iter() {
        let found = flat(gradients.get(id).unwrap()).iter().map(|g| g * g).sum::<f64>().sqrt();
        let wanted = expected["grad_norms"][&param.name].as_f64().unwrap();
        let bound = 1e-4 * wanted.max(1e-3);
        assert!((found - wanted).abs() < bound, "{name} {}: {found}, not {wanted}", param.name);
    }
}

#[test]
fn every_variant_has_the_logits_loss_and_gradients_of_transformers() {
    for name in cases() {
        let folder = fixtures().join("rope").join(&name);
        let model = CausalLm::load(&folder, Some(DType::F32), &Device::Cpu).unwrap();
        for expected in json(&folder.join("expected.json")).as_array().unwrap() {
            check(&name, &model, expected);
        }
    }
}

/// What transformers 5 writes back means the same as what was written by hand.
#[test]
fn both_spellings_mean_the_same() {
    for name in cases() {
        let folder = fixtures().join("rope").join(&name);
        let read = |file: &str| {
            let path = folder.join(file);
            let mut config = ModelConfig::from_json(json(&path), &path).unwrap();
            config.raw = Value::Null;
            config
        };
        assert_eq!(read("config.json"), read("config.saved.json"), "{name}");
    }
}
