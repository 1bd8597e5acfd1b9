//! The hand-written backward pass against what PyTorch computed for the first micro-batch.

use chandler_model::{CausalLm, Gradients, SequenceLayout};
use serde_json::Value;

use crate::support::{MODELS, assert_statistics, golden, ids, labels, load, targets};

/// Loss and gradients of some rows of a golden's `tokenized`, normalised by `num_items`.
fn backward(model: &CausalLm, train: &Value, rows: &[u32], num_items: f64) -> (f64, Gradients) {
    let (mut input_ids, mut all_targets, mut lengths) = (vec![], vec![], vec![]);
    for row in rows {
        let row = &train["tokenized"][*row as usize];
        let ids = ids(&row["input_ids"]);
        lengths.push(ids.len() as u32);
        input_ids.extend(ids);
        all_targets.extend(targets(&labels(&row["labels"])));
    }
    let input = model.input(&input_ids, SequenceLayout::new(lengths)).unwrap();
    let mut gradients = Gradients::none(model.params());
    let mut x = model.embed(&input).unwrap();
    let mut saved = vec![];
    for index in 0..model.num_blocks() {
        let (y, kept) = model.block_forward(index, &x, &input).unwrap();
        saved.push(kept);
        x = y;
    }
    let (score, dx) =
        model.loss_backward(&x, &all_targets, 1.0 / num_items, &mut gradients).unwrap();
    let mut dx = Some(dx);
    for (index, kept) in saved.into_iter().enumerate().rev() {
        let dy = dx.expect("something below is trained");
        dx = model.block_backward(index, kept, &input, &dy, &mut gradients).unwrap();
    }
    let trains_embedding = model.params().trains(model.embedding_param());
    assert_eq!(dx.is_some(), trains_embedding, "the first block's input has a gradient if asked");
    if let Some(dx) = dx {
        model.embed_backward(&input, &dx, &mut gradients).unwrap();
    }
    (score.wait().unwrap().loss_sum / num_items, gradients)
}

#[test]
fn the_first_micro_batch_has_the_gradients_of_pytorch() {
    for name in MODELS {
        let model = load(name);
        let train = golden(name, "train.json");
        let step = &train["steps"][0];
        let num_items = step["num_items"].as_f64().unwrap();
        let (loss, gradients) = backward(&model, &train, &ids(&step["micro"][0]), num_items);
        let expected = train["micro0"]["loss"].as_f64().unwrap();
        assert!((loss / expected - 1.0).abs() < 2e-6, "{name}: loss {loss}, not {expected}");
        let mut checked = 0;
        for (id, param) in model.params().iter() {
            let expected = &train["micro0"]["grads"][&param.name];
            let gradient = gradients.get(id).unwrap_or_else(|| panic!("{name}: {}", param.name));
            assert_statistics(&format!("{name} {}", param.name), gradient, expected, 2e-5);
            assert!(expected["l2"].as_f64().unwrap() > 0.0);
            checked += 1;
        }
        assert!(checked >= 20, "{name}");
    }
}

#[test]
fn frozen_weights_get_no_gradient() {
    let mut model = load("qwen3");
    let train = golden("qwen3", "train.json");
    let config = chandler_model::LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        use_rslora: false,
        target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
    };
    model.add_lora(config, 1).unwrap();
    let (_, gradients) = backward(&model, &train, &[0, 1], 10.0);
    let with: Vec<&str> =
        gradients.iter().map(|(id, _)| model.params().get(id).name.as_str()).collect();
    assert_eq!(with.len(), 2 * 2 * 2);
    assert!(with.iter().all(|name| name.contains("lora_")), "{with:?}");
}
