//! peft's adapter folders, in and out.

use candle_core::DType;
use chandler_durable::RealFs;
use chandler_model::{
    AdapterBase, CausalLm, KvCache, LoraConfig, ModelError, SequenceLayout, write_adapter,
};

use crate::support::{
    MODELS, assert_statistics, flat, golden, golden_folder, ids, largest_difference, load, numbers,
};

fn with_adapter(name: &str, adapter: &str) -> CausalLm {
    let mut model = load(name);
    model.load_adapter(&golden_folder(name).join(adapter)).unwrap();
    model
}

fn logits(model: &CausalLm, ids: &[u32]) -> candle_core::Tensor {
    let input = model.input(ids, SequenceLayout::new([ids.len() as u32])).unwrap();
    model.logits(&model.forward(&input).unwrap()).unwrap()
}

#[test]
fn a_trained_adapter_gives_the_logits_of_peft() {
    for name in MODELS {
        if !golden_folder(name).join("lora.json").exists() {
            continue;
        }
        let expected = &golden(name, "lora.json")["after_logits"];
        let model = with_adapter(name, "lora_after");
        let found = logits(&model, &ids(&expected["input_ids"]));
        let rows: Vec<Vec<f64>> = found.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
        let l2: Vec<f64> =
            rows.iter().map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
        assert!(largest_difference(&l2, &numbers(&expected["row_l2"])) < 5e-4, "{name}");
        let last = largest_difference(
            &rows.last().unwrap()[..16],
            &numbers(&expected["last_row_first16"]),
        );
        assert!(last < 1e-4, "{name}: {last}");
    }
}

/// Token by token, with a cache, what the whole text gives at once.
#[test]
fn decoding_goes_through_the_adapter() {
    let model = with_adapter("qwen3", "lora_after");
    let text: Vec<u32> = (0..12).map(|i| (i * 37 + 11) % 2000).collect();
    let mut cache = KvCache::new(model.config(), 1, 12, DType::F32, model.device()).unwrap();
    model.forward_cached(&[(0, &text[..5])], &mut cache).unwrap();
    for at in 5..12 {
        let found = model.forward_cached(&[(0, &text[at..=at])], &mut cache).unwrap();
        let expected = logits(&model, &text[..=at]).get(at).unwrap();
        let plain = load("qwen3");
        let without = logits(&plain, &text[..=at]).get(at).unwrap();
        assert!(largest_difference(&flat(&found), &flat(&expected)) < 2e-5, "token {at}");
        assert!(largest_difference(&flat(&found), &flat(&without)) > 1e-3, "token {at}");
    }
}

#[test]
fn merging_gives_the_weights_of_peft() {
    for name in MODELS {
        if !golden_folder(name).join("lora.json").exists() {
            continue;
        }
        let mut model = with_adapter(name, "lora_after");
        let tokens: Vec<u32> = (10..40).collect();
        let adapted = flat(&logits(&model, &tokens));
        model.merge_adapter().unwrap();
        assert!(model.lora().is_none());
        assert!(largest_difference(&adapted, &flat(&logits(&model, &tokens))) < 2e-5, "{name}");
        let expected = golden(name, "lora.json");
        let mut checked = 0;
        for (_, param) in model.params().iter() {
            let expected = &expected["merged_weights"][&param.name];
            if expected.is_object() {
                assert_statistics(&format!("{name} {}", param.name), &param.value, expected, 1e-5);
                checked += 1;
            }
        }
        assert!(checked >= 14, "{name}: {checked}");
    }
}

#[test]
fn an_adapter_survives_its_folder() {
    let model = with_adapter("qwen3", "lora_after");
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<(&str, &candle_core::Tensor)> =
        model.params().trainable().map(|(_, p)| (p.name.as_str(), &p.value)).collect();
    let config = model.lora().unwrap();
    let base = AdapterBase { name: "owner/qwen3".into(), revision: Some("v1".into()) };
    write_adapter(&RealFs, folder.path(), config, &base, &tensors, DType::F32).unwrap();
    let said = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["base_model_name_or_path"], "owner/qwen3");
    assert_eq!(said["revision"], "v1");
    let mut again = load("qwen3");
    again.load_adapter(folder.path()).unwrap();
    assert_eq!(again.lora().unwrap().r, config.r);
    assert_eq!(again.lora().unwrap().lora_alpha.to_bits(), config.lora_alpha.to_bits());
    let tokens: Vec<u32> = (10..40).collect();
    assert_eq!(flat(&logits(&model, &tokens)), flat(&logits(&again, &tokens)));
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let plain = load("llama-gqa");
    let mut adapted = load("llama-gqa");
    let config = LoraConfig { r: 4, lora_alpha: 16.0, use_rslora: true, target_modules: vec![] };
    adapted.add_lora(config, 3).unwrap();
    let tokens: Vec<u32> = (10..40).collect();
    assert_eq!(flat(&logits(&plain, &tokens)), flat(&logits(&adapted, &tokens)));
    assert_eq!(adapted.params().trainable().count(), 2 * 7 * 2);
}

#[test]
fn what_does_not_fit_is_named() {
    let mut model = load("qwen3");
    let config = |target: &str| LoraConfig {
        r: 4,
        lora_alpha: 16.0,
        use_rslora: false,
        target_modules: vec![target.to_owned()],
    };
    let error = model.add_lora(config("query"), 1).unwrap_err().to_string();
    assert!(error.contains("\"query\"") && error.contains("q_proj, k_proj"), "{error}");
    let error = load("qwen3").load_adapter(&golden_folder("mistral").join("lora_after"));
    assert!(matches!(error, Err(ModelError::Misshapen { .. })), "{error:?}");
    let nowhere = tempfile::tempdir().unwrap();
    let error = load("qwen3").load_adapter(nowhere.path()).unwrap_err();
    assert!(error.to_string().contains("adapter_config.json") && error.hint().is_some());
}
