//! Checkpoints of every format that there has been are gone on from.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{goldens, metrics, model, ok, text_of};

/// Other instructions round otherwise.
const TOLERANCE: f64 = 1e-5;

#[test]
fn every_format_is_resumed_and_goes_the_same_way() {
    let all = goldens().join("../checkpoints");
    let mut formats = 0;
    for entry in fs::read_dir(all).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        formats += 1;
        let losses: Value =
            serde_json::from_str(&fs::read_to_string(folder.join("losses.json")).unwrap()).unwrap();
        for row in resumed(&folder) {
            let (expected, found) = (&losses[row["step"].to_string()], &row["loss"]);
            let difference = expected.as_f64().unwrap() - found.as_f64().unwrap();
            assert!(difference.abs() < TOLERANCE, "{}: {expected}, {found}", folder.display());
        }
    }
    assert_eq!(formats, 4, "one for each format");
}

/// The steps after a golden checkpoint.
fn resumed(golden: &Path) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let checkpoint = out.join("checkpoint-3");
    fs::create_dir_all(&checkpoint).unwrap();
    for entry in fs::read_dir(golden.join("checkpoint-3")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), checkpoint.join(entry.file_name())).unwrap();
    }
    let file = folder.path().join("metrics.jsonl");
    let settings = [
        "lora.r=2",
        "train.max_steps=6",
        "train.save_steps=3",
        "train.per_device_train_batch_size=2",
        "data.max_length=160",
        "eval.eval_steps=0",
    ];
    let (model, data) = (model("qwen3"), goldens().join("data/chat.jsonl"));
    let fixed = ["train", "--resume", "--model", &model, "--data", text_of(&data), "--output"];
    let places = [text_of(&out), "--metrics", text_of(&file)];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    ok(&[&fixed[..], &places, &settings].concat());
    // The newest format is that which is written now.
    let manifest = fs::read_to_string(out.join("checkpoint-6/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["extra"]["format"], 4);
    let steps = metrics(&file);
    let numbers: Vec<_> = steps.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [4, 5, 6]);
    steps
}
