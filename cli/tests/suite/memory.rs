//! `memory.limit`, and the plan of a model that is not there.

use serde_json::{Value, json};

use crate::support::{goldens, metrics, model, ok, put, run, text_of};

/// Four steps of the golden chats with evaluations between, within a limit; how it ended, what it
/// said, and the losses.
fn train(limit: Option<&str>) -> (Option<i32>, String, Vec<f64>) {
    let folder = tempfile::tempdir().unwrap();
    let (output, steps) = (folder.path().join("out"), folder.path().join("metrics.jsonl"));
    let (name, data) = (model("qwen3"), goldens().join("data/chat.jsonl"));
    let mut args = vec!["train", "--model", &name, "--data", text_of(&data)];
    args.extend(["--output", text_of(&output), "--metrics", text_of(&steps)]);
    for setting in [
        "train.max_steps=4",
        "train.per_device_train_batch_size=8",
        "data.max_length=128",
        "eval.eval_steps=2",
        "eval.samples=4",
        "eval.max_new_tokens=48",
    ] {
        args.extend(["--set", setting]);
    }
    let limit = limit.map(|limit| format!("memory.limit={limit}"));
    args.extend(limit.iter().flat_map(|limit| ["--set", limit]));
    let done = run(&args);
    let losses = if steps.exists() { metrics(&steps) } else { vec![] };
    let losses = losses.iter().map(|row| row["loss"].as_f64().unwrap()).collect();
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned(), losses)
}

#[test]
fn within_any_limit_a_run_is_the_same_or_refused() {
    let (code, _, expected) = train(None);
    assert_eq!((code, expected.len()), (Some(0), 4));
    let (mut refused, mut cut, mut whole) = (0, 0, 0);
    for mib in [1, 4, 8, 9, 10, 11, 12, 13, 14, 16, 20, 24, 64, 96] {
        let (code, said, losses) = train(Some(&format!("{mib}MiB")));
        if code == Some(5) {
            assert!(said.contains("are lacking") && said.contains("hint: "), "{said}");
            assert!(cut + whole == 0, "{mib} MiB do not suffice, and less did:\n{said}");
            refused += 1;
            continue;
        }
        assert_eq!(code, Some(0), "{mib} MiB: {said}");
        let near = |(a, b): (&f64, &f64)| (a / b - 1.0).abs() <= 1e-6;
        let same = losses.len() == 4 && losses.iter().zip(&expected).all(near);
        assert!(same, "{mib} MiB: {losses:?} not {expected:?}\n{said}");
        let said_so = said.contains("to fit into memory");
        (cut, whole) = (cut + usize::from(said_so), whole + usize::from(!said_so));
    }
    assert!(refused > 1 && cut > 1 && whole > 1, "{refused} {cut} {whole}");
}

/// A model of 70 billion parameters is planned for from its config.json, in a moment.
#[test]
fn a_plan_needs_no_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 8192,
        "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    });
    put(&folder.path().join("config.json"), config.to_string());
    let picture = folder.path().join("plan.svg");
    let mut args = vec!["plan", "--model", text_of(folder.path()), "--device", "640GiB"];
    args.extend(["--seq-len", "4096", "--eval-batch", "2", "--set", "model.dtype=bf16"]);
    args.extend(["--set", "lora.r=16", "--svg", text_of(&picture), "--json"]);
    let plan: Value = serde_json::from_str(&ok(&args)).unwrap();
    let weights = plan["lines"][0]["bytes"].as_u64().unwrap();
    assert!((141e9..142e9).contains(&(weights as f64)), "{weights}");
    let rows = plan["table"]["rows"].as_array().unwrap();
    let batches = rows.iter().map(|row| row["best"]["choice"]["micro_batch_rows"].as_u64());
    let batches: Vec<u64> = batches.map(Option::unwrap_or_default).collect();
    assert!(batches.len() == 4 && batches.is_sorted() && batches[3] > 1, "{batches:?}");
    let beyond = &plan["table"]["beyond"];
    assert_eq!(beyond["micro_batch_rows"].as_u64(), Some(batches[3] + 1));
    for row in rows {
        let best = &row["best"];
        let sum = best["train_peak"].as_u64().unwrap() + best["headroom"].as_u64().unwrap();
        assert_eq!(Some(sum), row["budget"].as_u64());
    }
    let drawn = std::fs::read_to_string(picture).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("weights"), "{drawn}");
}

/// A folder with the configuration of Qwen3-0.6B.
fn qwen3() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": true,
    });
    put(&folder.path().join("config.json"), config.to_string());
    folder
}

/// One card, an evaluation with 2048 new tokens, and a second daemon on it.
#[test]
fn the_incident_is_foreseen() {
    let folder = qwen3();
    let mut args = vec!["plan", "--model", text_of(folder.path()), "--device", "23.63GiB"];
    args.extend(["--seq-len", "4096", "--max-new-tokens", "2048", "--set", "model.dtype=bf16"]);
    args.extend(["--set", "train.per_device_train_batch_size=16"]);
    let alone = ok(&args);
    assert!(alone.contains("at most 4 rows go through the model together"), "it fits: {alone}");
    args.extend(["--others", "12.4GiB"]);
    let output = run(&args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{said}");
    let sentence = said.lines().find(|line| line.contains("could not be had")).unwrap();
    for part in
        ["of 23.63 GiB everybody else holds 12.40 GiB", "optimizer_state 4.44 GiB", "kv_cache"]
    {
        assert!(sentence.contains(part), "{sentence}");
    }
}

/// A run is held to `memory.limit` on any device.
#[test]
fn a_plan_knows_the_limit() {
    let folder = qwen3();
    let budget = |more: &[&str]| -> u64 {
        let mut args = vec!["plan", "--model", text_of(folder.path()), "--json"];
        args.extend(["--set", "model.dtype=bf16", "--set", "memory.limit=6GiB"]);
        args.extend(more);
        let output = run(&args);
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        plan["budget"].as_u64().unwrap()
    };
    assert_eq!(budget(&["--device", "80GiB"]), 6 << 30);
    assert_eq!(budget(&["--device", "5GiB"]), 5 << 30);
    assert!(budget(&[]) <= 6 << 30, "this machine's");
}

/// A card of another machine: what its driver takes, and ops that keep no buffers.
#[test]
fn a_card_has_a_context() {
    let folder = qwen3();
    let plan = |more: &[&str]| -> Value {
        let mut args = vec!["plan", "--model", text_of(folder.path()), "--device", "80GiB"];
        args.extend(["--set", "model.dtype=bf16", "--json"]);
        args.extend(more);
        serde_json::from_str(&ok(&args)).unwrap()
    };
    let context = |plan: &Value| {
        let lines = plan["lines"].as_array().unwrap();
        let line = lines.iter().find(|line| line["category"] == "context");
        line.map(|line| line["bytes"].as_u64().unwrap())
    };
    let (usual, less) = (plan(&["--gpu"]), plan(&["--gpu", "--context", "300MiB"]));
    assert_eq!(context(&plan(&[])), None);
    assert_eq!((context(&usual), context(&less)), (Some(512 << 20), Some(300 << 20)));
    for key in ["resident", "train_peak", "eval_peak", "peak"] {
        let bytes = |plan: &Value| plan[key].as_u64().unwrap();
        assert_eq!(bytes(&usual) - bytes(&less), 212 << 20, "{key}");
    }
}
