//! Exported models answer elsewhere as they do here: in llama.cpp, and in transformers and peft.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::python::{python_of, python_with};
use crate::support::{goldens, model, ok, put, text_of};

const NEW_TOKENS: &str = "8";
const QUESTION: &str = "Where is the key of the two red cats?";

/// What is asked, with the prompt's ids, the answer's and their log-probabilities.
fn answer_of(folder: &Path, name: &str, extra: &[&str]) -> Value {
    let messages = folder.join("messages.json");
    put(&messages, json!([{ "role": "user", "content": QUESTION }]).to_string());
    let args = ["generate", "--model", name, "--messages", text_of(&messages), "--json"];
    let more = ["--max-new-tokens", NEW_TOKENS];
    serde_json::from_str(&ok(&[&args, &more[..], extra].concat())).unwrap()
}

/// A model of the goldens, with its configuration as llama.cpp has a place for it and, where its own
/// tokenizer is none that SentencePiece could have made, another one.
fn as_llama_cpp_takes_it(
    folder: &Path,
    name: &str,
    key: &str,
    value: Value,
    keeps_tokenizer: bool,
) -> String {
    let to = folder.join(name);
    fs::create_dir(&to).unwrap();
    let of_tokenizer = ["tokenizer", "special_tokens", "added_tokens", "chat_template"];
    let copy = |from: &str, wanted: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(model(from)).unwrap() {
            let entry = entry.unwrap();
            if wanted(&entry.file_name().to_string_lossy()) {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    let is_of_tokenizer = |file: &str| of_tokenizer.iter().any(|part| file.starts_with(part));
    copy(name, &|file| keeps_tokenizer || !is_of_tokenizer(file));
    if !keeps_tokenizer {
        copy("qwen3", &is_of_tokenizer);
    }
    let path = to.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::remove_file(&path).unwrap();
    put(&path, config.to_string());
    text_of(&to).to_owned()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counterparts").join(name)
}

/// Runs a script of the counterparts on a folder; what it says must be about as many models.
fn check(python: &str, name: &str, folder: &Path, models: usize) {
    let output = Command::new(python)
        .arg(script(name))
        .arg(folder)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said.lines().count(), models, "{said}");
    eprint!("{said}");
}

#[test]
fn llama_cpp_answers_as_chandler_does() {
    let Some(python) = python_with("xllamacpp") else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let changed = |name: &str, key: &str, value: Value, keeps_tokenizer: bool| {
        (name.to_owned(), as_llama_cpp_takes_it(place, name, key, value, keeps_tokenizer))
    };
    let same = |name: &str| (name.to_owned(), model(name));
    let models = [
        same("qwen2"),
        same("qwen3"),
        same("llama-gqa"),
        same("smol-llama"),
        changed("mistral", "sliding_window", Value::Null, true),
        changed("gemma2", "query_pre_attn_scalar", 16.into(), false),
        changed("gemma3", "sliding_window_pattern", 6.into(), false),
    ];
    for (name, folder) in &models {
        let file = place.join(format!("{name}.gguf"));
        ok(&["export", "gguf", text_of(&file), "--model", folder, "--type", "f32"]);
        let mut answer = answer_of(place, folder, &[]);
        answer["question"] = QUESTION.into();
        put(&place.join(format!("{name}.json")), answer.to_string());
    }
    check(&python, "llama_cpp.py", place, models.len());
}

#[test]
fn transformers_and_peft_answer_as_chandler_does() {
    let Some(python) = python_of("CHANDLER_TEST_TORCH", "peft") else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let name = model("qwen3");
    let data = goldens().join("data/chat.jsonl");
    let train = |out: &Path, set: &[&str]| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let args = ["train", "--model", &name, "--data", text_of(&data), "--output", text_of(out)];
        ok(&[&args, &set[..]].concat());
    };
    let quick = ["train.max_steps=3", "train.learning_rate=0.01", "data.max_length=160"];
    let and = |more: &[&'static str]| [&quick[..], &["eval.eval_steps=0"], more].concat();
    let keep = |what: &str, answer: &Value, of: &Value| {
        let mut answer = answer.clone();
        answer["of"] = of.clone();
        put(&place.join(format!("{what}.json")), answer.to_string());
    };

    // A model that was trained whole, as training leaves it and as it is exported in bf16.
    let whole = place.join("whole");
    train(&whole, &and(&[]));
    let answer = answer_of(place, text_of(&whole), &[]);
    keep("whole", &answer, &json!({ "model": whole }));
    let exported = place.join("exported");
    ok(&["export", "model", text_of(&exported), "--model", text_of(&whole), "--dtype", "bf16"]);
    let answer = answer_of(place, text_of(&exported), &["--set", "model.dtype=f32"]);
    keep("exported", &answer, &json!({ "model": exported }));

    // An adapter on its base, and merged into it.
    let adapter = place.join("adapter");
    train(&adapter, &and(&["lora.r=4"]));
    let answer = answer_of(place, &name, &["--adapter", text_of(&adapter)]);
    keep("adapter", &answer, &json!({ "model": name, "adapter": adapter }));
    let merged = place.join("merged");
    let args = ["export", "model", text_of(&merged), "--model", &name];
    ok(&[&args, &["--adapter", text_of(&adapter), "--dtype", "f32"][..]].concat());
    keep("merged", &answer, &json!({ "model": merged }));
    check(&python, "transformers_and_peft.py", place, 4);
}
