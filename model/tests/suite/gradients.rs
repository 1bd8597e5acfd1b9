//! The hand-written backward pass against what PyTorch computed for the first micro-batch.

use candle_core::{DType, Device};
use chandler_model::{CausalLm, Gradients, SequenceLayout};
use serde_json::Value;

use crate::support::{
    MODELS, assert_statistics, device, flat, golden, ids, labels, load, model_folder, skip, targets,
};

/// Tokens of some documents, what each of them predicts, and the documents' lengths.
#[derive(Default)]
struct Documents {
    input_ids: Vec<u32>,
    targets: Vec<i64>,
    lengths: Vec<u32>,
}

impl Documents {
    fn push(&mut self, ids: &[u32], labels: &[i64]) {
        self.lengths.push(ids.len() as u32);
        self.input_ids.extend(ids);
        self.targets.extend(targets(labels));
    }

    /// Some rows of a golden's `tokenized`.
    fn of_golden(train: &Value, rows: &[u32]) -> Self {
        let mut all = Self::default();
        for row in rows {
            let row = &train["tokenized"][*row as usize];
            all.push(&ids(&row["input_ids"]), &labels(&row["labels"]));
        }
        all
    }
}

/// Loss and gradients of some documents, normalised by `num_items`.
fn backward(model: &CausalLm, documents: &Documents, num_items: f64) -> (f64, Gradients) {
    let layout = SequenceLayout::new(documents.lengths.clone());
    let input = model.input(&documents.input_ids, layout).unwrap();
    let mut gradients = Gradients::none(model.params());
    let mut x = model.embed(&input).unwrap();
    let mut saved = vec![];
    for index in 0..model.num_blocks() {
        let (y, kept) = model.block_forward(index, &x, &input).unwrap();
        saved.push(kept);
        x = y;
    }
    let (score, dx) =
        model.loss_backward(&x, &documents.targets, 1.0 / num_items, &mut gradients).unwrap();
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
        let documents = Documents::of_golden(&train, &ids(&step["micro"][0]));
        let (loss, gradients) = backward(&model, &documents, num_items);
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
    let (_, gradients) = backward(&model, &Documents::of_golden(&train, &[0, 1]), 10.0);
    let with: Vec<&str> =
        gradients.iter().map(|(id, _)| model.params().get(id).name.as_str()).collect();
    assert_eq!(with.len(), 2 * 2 * 2);
    assert!(with.iter().all(|name| name.contains("lora_")), "{with:?}");
}

/// Documents that a GPU's library has the attention of, beside one that it has not, against the CPU: the
/// golden texts are all short.
#[test]
fn long_documents_have_the_gradients_of_the_cpu() {
    if device().is_cpu() {
        skip("there is no other device to compare the CPU with");
        return;
    }
    let mut documents = Documents::default();
    for (seed, len) in [(1u64, 600), (2, 40), (3, 530), (4, 520)] {
        let token = |at: u64| ((at + 1) * (seed * 7919) % 1999) as u32;
        let ids: Vec<u32> = (0..len).map(token).collect();
        let labels: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        documents.push(&ids, &labels);
    }
    let items = documents.input_ids.len() as f64;
    for name in ["qwen3", "gemma2"] {
        let on = |device| CausalLm::load(&model_folder(name), Some(DType::BF16), device).unwrap();
        let (expected_loss, expected) = backward(&on(&Device::Cpu), &documents, items);
        let there = on(&device());
        let (loss, found) = backward(&there, &documents, items);
        assert!((loss / expected_loss - 1.0).abs() < 1e-3, "{name}: {loss}, not {expected_loss}");
        for (id, param) in there.params().iter() {
            let of = |gradients: &Gradients| {
                flat(&gradients.get(id).unwrap().to_device(&Device::Cpu).unwrap())
            };
            let (found, expected) = (of(&found), of(&expected));
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
            let apart = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let size = square(&mut expected.iter().copied());
            let error = (apart / size).sqrt();
            assert!(error < 2e-2, "{name} {}: {error} of its size", param.name);
        }
    }
}
