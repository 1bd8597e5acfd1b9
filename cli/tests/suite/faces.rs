//! The machine-readable faces against the goldens.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    chandler, fails, golden, goldens, metrics, model, ok, put, settings, text_of,
};

fn train(name: &str, golden: &Value, extra: &[&str], out: &Path) -> Vec<Value> {
    let data = goldens().join(golden["dataset"].as_str().unwrap());
    let file = out.join("metrics.jsonl");
    let status = chandler()
        .args(["train", "--model", &model(name), "--data", text_of(&data)])
        .args(["--output", text_of(&out.join("out")), "--metrics", text_of(&file)])
        .args(settings(&golden["hp"]))
        .args(extra)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    metrics(&file)
}

fn assert_trajectory(name: &str, found: &[Value], expected: &Value, loss: f64) {
    let list = |key: &str| expected[key].as_array().unwrap().clone();
    for (key, in_golden, tolerance) in
        [("loss", "loss", loss), ("grad_norm", "grad_norm", 5.0 * loss), ("lr", "lr", 1e-9)]
    {
        for (step, expected) in list(in_golden).iter().enumerate() {
            let (found, expected) =
                (found[step][key].as_f64().unwrap(), expected.as_f64().unwrap());
            let off = (found - expected).abs() / expected.abs().max(1e-12);
            assert!(off <= tolerance, "{name} {key} of step {}: {found} not {expected}", step + 1);
        }
    }
    assert_eq!(found.len(), list("loss").len(), "{name}");
    let last = found.last().unwrap();
    let tokens = list("num_tokens").last().and_then(Value::as_f64);
    assert_eq!(last["num_tokens"].as_f64(), tokens, "{name}");
    assert_eq!(found[0]["step"], 1);
    for key in ["mean_token_accuracy", "tokens_per_s", "peak_bytes"] {
        assert!(last[key].is_number(), "{name}: {key}");
    }
}

#[test]
fn train_follows_the_goldens_and_its_folder_loads() {
    for name in ["smol-llama", "gemma3"] {
        let expected = golden(name, "train.json");
        let folder = tempfile::tempdir().unwrap();
        let found = train(name, &expected, &[], folder.path());
        assert_trajectory(name, &found, &expected["trajectory"], 2e-5);
        let out = folder.path().join("out");
        let report = ok(&[
            "eval",
            "--model",
            text_of(&out),
            "--data",
            text_of(&goldens().join(expected["dataset"].as_str().unwrap())),
            "--set",
            "eval.samples=1",
            "--set",
            "eval.max_new_tokens=3",
            "--json",
        ]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert!(report["loss"].as_f64().unwrap() < found[0]["loss"].as_f64().unwrap());
    }
}

#[test]
fn packed_rows_follow_too() {
    let expected = golden("qwen2", "packed.json");
    let folder = tempfile::tempdir().unwrap();
    let extra = ["--set", "data.packing=true"];
    let found = train("qwen2", &expected, &extra, folder.path());
    assert_trajectory("qwen2", &found, &expected["trajectory"], 2e-5);
}

#[test]
fn adapters_go_in_and_out() {
    let expected = golden("llama-gqa", "lora.json");
    let folder = tempfile::tempdir().unwrap();
    let before = goldens().join("goldens/llama-gqa/lora_before");
    let extra = ["--adapter", text_of(&before)];
    let found = train("llama-gqa", &expected, &extra, folder.path());
    assert_trajectory("llama-gqa", &found, &expected["trajectory"], 2e-5);
    let adapter = folder.path().join("out");
    assert!(adapter.join("adapter_model.safetensors").exists());
    let merged = folder.path().join("merged");
    ok(&[
        "export",
        text_of(&merged),
        "--model",
        &model("llama-gqa"),
        "--adapter",
        text_of(&adapter),
    ]);
    let messages = folder.path().join("messages.json");
    put(&messages, json!([{ "role": "user", "content": "What is 2 + 2?" }]).to_string());
    let answer = |arguments: &[&str]| -> Value {
        let fixed =
            ["generate", "--messages", text_of(&messages), "--max-new-tokens", "12", "--json"];
        serde_json::from_str(&ok(&[&fixed, arguments].concat())).unwrap()
    };
    let name = model("llama-gqa");
    let with = answer(&["--model", &name, "--adapter", text_of(&adapter)]);
    assert_eq!(with["new_ids"], answer(&["--model", text_of(&merged)])["new_ids"]);
    assert_ne!(with["logprobs"], answer(&["--model", &name])["logprobs"]);
}

#[test]
fn generate_prints_what_transformers_generates() {
    for name in ["qwen3", "mistral"] {
        let folder = tempfile::tempdir().unwrap();
        for case in golden(name, "generate.json")["greedy"].as_array().unwrap().iter().take(3) {
            let messages = folder.path().join("messages.json");
            put(&messages, case["messages"].to_string());
            let found = ok(&[
                "generate",
                "--model",
                &model(name),
                "--messages",
                text_of(&messages),
                "--max-new-tokens",
                &case["max_new_tokens"].to_string(),
                "--repetition-penalty",
                &case["repetition_penalty"].to_string(),
                "--json",
            ]);
            let found: Value = serde_json::from_str(&found).unwrap();
            assert_eq!(found["prompt_ids"], case["prompt_ids"], "{name}");
            let (new, wanted) =
                (found["new_ids"].as_array().unwrap(), case["new_ids"].as_array().unwrap());
            let same = new.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            let margin = case["margins"].get(same).and_then(Value::as_f64).unwrap_or(0.0);
            assert!(same == wanted.len() || margin <= 1e-3, "{name} differs at {same}");
            assert_eq!(found["logprobs"].as_array().unwrap().len(), new.len());
        }
    }
}

#[test]
fn a_stop_string_ends_an_answer() {
    let case = &golden("smol-llama", "generate.json")["greedy"][0];
    let whole = case["text"].as_str().unwrap();
    let stop: String = whole.trim_start().chars().skip(6).take(4).collect();
    let folder = tempfile::tempdir().unwrap();
    let messages = folder.path().join("messages.json");
    put(&messages, case["messages"].to_string());
    let setting = format!("eval.stop={}", json!([stop]));
    let found = ok(&[
        "generate",
        "--model",
        &model("smol-llama"),
        "--messages",
        text_of(&messages),
        "--max-new-tokens",
        "64",
        "--set",
        &setting,
        "--json",
    ]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["ended"], "stop_string", "{found}");
    assert_eq!(found["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn preview_prints_the_rows_of_trl() {
    let train = golden("smol-llama", "train.json");
    let data = goldens().join(train["dataset"].as_str().unwrap());
    let length = format!("data.max_length={}", train["hp"]["max_length"]);
    let name = model("smol-llama");
    let text =
        ok(&["data", "preview", text_of(&data), "--model", &name, "--json", "--set", &length]);
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (index, expected) in train["tokenized"].as_array().unwrap().iter().enumerate() {
        let row = &rows[train["kept_rows"][index].as_u64().unwrap() as usize];
        assert_eq!(row["input_ids"], expected["input_ids"], "row {index}");
        assert_eq!(row["labels"], expected["labels"], "row {index}");
        assert!(row["text"].as_str().unwrap().contains("<|im_start|>"));
    }
    let shown = ok(&["data", "preview", text_of(&data), "--model", &name, "--rows", "1"]);
    assert!(shown.contains("line 1:") && shown.contains("⟦"), "{shown}");
}

#[test]
fn an_evaluation_every_step_leaves_the_losses_alone() {
    let expected = golden("qwen3", "train.json");
    let mut losses = vec![];
    for extra in [
        &["--set", "train.max_steps=4"][..],
        &[
            "--set",
            "train.max_steps=4",
            "--set",
            "eval.eval_steps=1",
            "--set",
            "eval.max_new_tokens=4",
            "--set",
            "eval.samples=2",
        ],
    ] {
        let folder = tempfile::tempdir().unwrap();
        losses.push(crate::support::bits(&train("qwen3", &expected, extra, folder.path())));
    }
    assert_eq!(losses[0], losses[1]);
}

#[test]
fn plan_says_whether_it_fits() {
    let name = model("qwen3");
    let plan: Value = serde_json::from_str(&ok(&["plan", "--model", &name, "--json"])).unwrap();
    assert!(plan["peak"].as_u64().unwrap() > 1_000_000);
    assert_eq!(plan["fits"], true);
    let output = crate::support::run(&["plan", "--model", &name, "--device", "1MiB"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("does NOT fit"));
    let wrong = fails(2, &["plan", "--model", &name, "--set", "train.learnin_rate=1"]);
    assert!(wrong.contains("learning_rate"), "{wrong}");
}
