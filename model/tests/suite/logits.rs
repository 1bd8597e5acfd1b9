//! Logits of every architecture against transformers, and against candle-transformers.

use candle_core::{DType, Device};
use chandler_model::{CausalLm, SequenceLayout};
use serde_json::Value;

use crate::support::{
    MODELS, device, flat, golden, golden_folder, ids, largest_difference, load, model_folder,
    numbers,
};

fn check(model: &CausalLm, name: &str, variant: &str, tolerance: f64) {
    let file = golden_folder(name).join("logits.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let cases = golden(name, "logits.json")["cases"].as_object().unwrap().clone();
    let mut checked = 0;
    for (case, expected) in cases.iter().filter(|(case, _)| case.ends_with(variant)) {
        let input = case.strip_suffix(variant).unwrap().trim_end_matches('.');
        let ids = tensors[&format!("{input}.input_ids")].flatten_all().unwrap();
        let ids: Vec<u32> = ids.to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let input = model.input(&ids, SequenceLayout::new([ids.len() as u32])).unwrap();
        let hidden = model.forward(&input).unwrap();
        let logits = model.logits(&hidden).unwrap().to_device(&Device::Cpu).unwrap();
        let rows: Vec<u32> = crate::support::ids(&expected["rows"]);
        let rows = candle_core::Tensor::new(rows, &Device::Cpu).unwrap();
        let found = flat(&logits.index_select(&rows, 0).unwrap());
        let wanted = flat(&tensors[&format!("{case}.logits_rows")]);
        let difference = largest_difference(&found, &wanted);
        assert!(difference <= tolerance, "{name} {case}: logits differ by {difference}");
        check_log_probs(model, &hidden, &ids, expected, tolerance);
        checked += 1;
    }
    assert_eq!(checked, 2, "{name} {variant}");
}

fn check_log_probs(
    model: &CausalLm,
    hidden: &candle_core::Tensor,
    ids: &[u32],
    expected: &Value,
    tolerance: f64,
) {
    let labels: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    let targets = crate::support::targets(&labels);
    let found = model.log_probs(hidden, &targets).unwrap();
    let wanted = numbers(&expected["target_logprob"]);
    let difference = largest_difference(&found[..wanted.len()], &wanted);
    assert!(difference <= tolerance, "log-probabilities differ by {difference}");
    let score = model.loss(hidden, &targets).unwrap();
    let loss = score.loss_sum / score.num_targets as f64;
    assert!((loss - expected["loss"].as_f64().unwrap()).abs() <= tolerance);
}

#[test]
fn every_architecture_has_the_logits_of_transformers() {
    for name in MODELS {
        check(&load(name), name, "f32", 1e-4);
    }
}

#[test]
fn bf16_weights_widened_to_f32_have_them_too() {
    for name in ["qwen3-bf16", "smol-llama-bf16"] {
        check(&load(name), name, "f32", 1e-4);
    }
}

/// Rounding to 8 bits of mantissa after every op leaves logits of this size within 0.25.
#[test]
fn bf16_math_stays_near() {
    for name in ["qwen3-bf16", "smol-llama-bf16"] {
        let model = CausalLm::load(&model_folder(name), None, &device()).unwrap();
        assert_eq!(model.dtype(), DType::BF16);
        check(&model, name, "bf16", 0.25);
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    for name in MODELS {
        let model = load(name);
        let packed = golden(name, "packed.json");
        let row = packed["packed_rows"].as_array().unwrap().iter();
        let row = row.max_by_key(|row| row["seq_lengths"].as_array().unwrap().len()).unwrap();
        let (ids, lengths) = (ids(&row["input_ids"]), ids(&row["seq_lengths"]));
        assert!(lengths.len() > 1, "{name}");
        let logits = |ids: &[u32], lengths: &[u32]| {
            let layout = SequenceLayout::new(lengths.iter().copied());
            let input = model.input(ids, layout).unwrap();
            flat(&model.logits(&model.forward(&input).unwrap()).unwrap())
        };
        let together = logits(&ids, &lengths);
        let mut alone = vec![];
        let mut start = 0;
        for length in lengths {
            let end = start + length as usize;
            alone.extend(logits(&ids[start..end], &[length]));
            start = end;
        }
        let difference = largest_difference(&together, &alone);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

/// An independent forward pass: candle-transformers' Llama.
#[test]
fn candle_transformers_agrees() {
    use candle_transformers::models::llama::{Cache, Config, Llama, LlamaEosToks};
    let folder = model_folder("smol-llama");
    let ours = load("smol-llama");
    let c = ours.config();
    let config = Config {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        vocab_size: c.vocab_size,
        num_hidden_layers: c.layers.len(),
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads,
        use_flash_attn: false,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope.theta as f32,
        bos_token_id: c.bos_token_id,
        eos_token_id: c.eos_token_ids.first().copied().map(LlamaEosToks::Single),
        rope_scaling: None,
        max_position_embeddings: c.max_position_embeddings,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu);
    let vars = candle_nn::VarBuilder::from_tensors(tensors.unwrap(), DType::F32, &Device::Cpu);
    let theirs = Llama::load(vars, &config).unwrap();
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let tokens = [5u32, 90, 3, 1700, 44, 8];
    let batch = candle_core::Tensor::new(&[tokens], &Device::Cpu).unwrap();
    let expected = flat(&theirs.forward(&batch, 0, &mut cache).unwrap());
    let input = ours.input(&tokens, SequenceLayout::new([tokens.len() as u32])).unwrap();
    let logits = ours.logits(&ours.forward(&input).unwrap()).unwrap();
    let last = flat(&logits.get(tokens.len() - 1).unwrap());
    assert!(largest_difference(&last, &expected) < 1e-4);
}
