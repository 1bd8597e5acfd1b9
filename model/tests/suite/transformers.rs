//! What we write is loaded by transformers itself, where Python has it; skipped, and said so, where
//! not. `CHANDLER_TEST_TORCH` names the interpreter.

use std::process::Command;

use candle_core::{DType, Tensor};
use chandler_durable::RealFs;
use chandler_model::{AdapterBase, SequenceLayout, write_adapter, write_model};
use serde_json::Value;

use crate::support::{
    MODELS, fixtures, flat, golden_folder, largest_difference, load, model_folder, numbers, skip,
};

const TOKENS: [u32; 6] = [5, 90, 3, 1700, 44, 8];

fn python() -> Option<String> {
    let named = std::env::var("CHANDLER_TEST_TORCH").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&named).args(["-c", "import torch, transformers, peft"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(named)
}

fn last_logits(model: &chandler_model::CausalLm) -> Vec<f64> {
    let input = model.input(&TOKENS, SequenceLayout::new([TOKENS.len() as u32])).unwrap();
    let logits = model.logits(&model.forward(&input).unwrap()).unwrap();
    flat(&logits.get(TOKENS.len() - 1).unwrap())
}

#[test]
fn written_folders_load_in_transformers_and_peft() {
    let Some(python) = python() else {
        skip("no Python with torch, transformers and peft");
        return;
    };
    for name in MODELS {
        let mut model = load(name);
        let source = model_folder(name);
        let folder = tempfile::tempdir().unwrap();
        let (whole, adapter) = (folder.path().join("model"), folder.path().join("adapter"));
        std::fs::create_dir_all(&whole).unwrap();
        std::fs::create_dir_all(&adapter).unwrap();
        let named: Vec<(&str, &Tensor)> =
            model.params().iter().map(|(_, p)| (p.name.as_str(), &p.value)).collect();
        write_model(&RealFs, &whole, model.config(), &named, DType::F32, &source).unwrap();
        let plain = last_logits(&model);
        model.load_adapter(&golden_folder(name).join("lora_after")).unwrap();
        let adapted = last_logits(&model);
        let named: Vec<(&str, &Tensor)> =
            model.params().trainable().map(|(_, p)| (p.name.as_str(), &p.value)).collect();
        let base = AdapterBase { name: whole.to_string_lossy().into(), revision: None };
        write_adapter(&RealFs, &adapter, model.lora().unwrap(), &base, &named, DType::F32).unwrap();
        let output = Command::new(&python)
            .arg(fixtures().join("load_in_transformers.py"))
            .args([&whole, &adapter])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {errors}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["missing"].as_array().unwrap().len(), 0, "{name}: {found}");
        assert_eq!(found["unexpected"].as_array().unwrap().len(), 0, "{name}: {found}");
        for (key, ours) in [("logits", &plain), ("adapted", &adapted)] {
            let difference = largest_difference(ours, &numbers(&found[key]));
            assert!(difference < 1e-4, "{name} {key}: {difference}");
        }
    }
}
