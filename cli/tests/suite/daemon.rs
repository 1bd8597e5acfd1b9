//! The daemon and its state directory.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{chandler, fails, goldens, model, ok, put, run, text_of};

const QUICK: [&str; 14] = [
    "--set",
    "train.max_steps=3",
    "--set",
    "train.per_device_train_batch_size=2",
    "--set",
    "eval.max_new_tokens=3",
    "--set",
    "eval.samples=2",
    "--set",
    "data.max_length=160",
    "--set",
    "daemon.min_free_gib=0",
    "--set",
    "daemon.settle_seconds=0",
];

fn state_of(folder: &Path) -> String {
    let state = text_of(&folder.join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    state
}

fn once(state: &str) -> std::process::Output {
    run(&[&["run", "--once", "--dir", state], &QUICK[..]].concat())
}

#[test]
fn a_second_daemon_is_told_who_the_first_is() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let mut first =
        chandler().args(["run", "--dir", &state]).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let runs = || {
        let output = run(&["status", "--dir", &state, "--json"]);
        let status: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        status.is_some_and(|status| status["running"] == true)
    };
    while !runs() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(20));
    }
    ok(&["pause", "--dir", &state]);
    let refusal = fails(3, &["run", "--once", "--dir", &state]);
    let status: Value = serde_json::from_str(&ok(&["status", "--dir", &state, "--json"])).unwrap();
    assert!(refusal.contains(&format!("pid {}", status["daemon"]["pid"])), "{refusal}");
    assert!(refusal.contains("run --dir"), "{refusal}");
    assert!(status.to_string().contains("paused"), "{status}");
    ok(&["resume", "--dir", &state]);
    ok(&["stop", "--dir", &state]);
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_quickstart_is_told_who_the_first_is() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = chandler();
        command.arg("quickstart").current_dir(folder.path()).stdout(Stdio::null());
        command
    };
    let mut first = start().stderr(Stdio::null()).spawn().unwrap();
    let database = folder.path().join("chandler-quickstart/chandler.db");
    let begun = Instant::now();
    while !database.exists() {
        assert!(begun.elapsed() < Duration::from_mins(1));
        sleep(Duration::from_millis(5));
    }
    let second = start().output().unwrap();
    let refusal = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(3), "{refusal}");
    let named = format!("pid {}", first.id());
    assert!(refusal.contains(&named) && refusal.contains("quickstart`"), "{refusal}");
    first.kill().unwrap();
    first.wait().unwrap();
}

#[test]
fn files_are_learned_in_order_and_each_from_the_newest_model() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let data = goldens().join("data/chat.jsonl");
    for (name, priority) in [("one", "low"), ("two", "normal"), ("three", "high")] {
        let file = folder.path().join(format!("{name}.jsonl"));
        std::fs::copy(&data, &file).unwrap();
        ok(&["add", "--dir", &state, "--priority", priority, text_of(&file)]);
    }
    let output = once(&state);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let learned: Vec<usize> = ["three", "two", "one"]
        .iter()
        .map(|name| log.find(&format!("({name}.jsonl): was learned from")).unwrap())
        .collect();
    assert!(learned.is_sorted(), "{log}");
    assert!(log.contains("eval at step 0") && log.contains("KV cache"), "{log}");
    let losses: Vec<&str> = log.lines().filter(|line| line.contains("step 1/3")).collect();
    assert_eq!(losses.len(), 3);
    assert!(losses[0] != losses[2]);
    assert_eq!(std::fs::read_dir(Path::new(&state).join("done")).unwrap().count(), 3);
    let snapshots = std::fs::read_dir(Path::new(&state).join("snapshots")).unwrap().count();
    assert_eq!(snapshots, 1);
    let jobs: Value = serde_json::from_str(&ok(&["jobs", "--dir", &state, "--json"])).unwrap();
    assert!(jobs.to_string().matches("\"done\"").count() >= 3, "{jobs}");
}

#[test]
fn an_adapter_run_leaves_a_merged_model() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    let lora = ["--set", "lora.r=4", "--set", "model.dtype=bf16"];
    let output = run(&[&["run", "--once", "--dir", &state], &QUICK[..], &lora].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let newest = Path::new(&state).join("model");
    let prompt = ["--prompt", "Hello", "--max-new-tokens", "2"];
    ok(&[&["generate", "--model", text_of(&newest)], &prompt[..]].concat());
}

#[test]
fn another_base_model_is_refused_with_the_way_to_start_anew() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let add = || ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    add();
    // A first job that is not run to its end binds the directory all the same.
    let full =
        [&["run", "--once", "--dir", &state], &QUICK[..], &["--set", "daemon.min_free_gib=1e9"]];
    fails(6, &full.concat());
    let other = format!("model.path={}", model("smol-llama"));
    let refusal = fails(1, &["run", "--once", "--dir", &state, "--set", &other]);
    assert!(refusal.contains("bound to another base model"), "{refusal}");
    assert!(refusal.contains("init --dir"), "{refusal}");
}

/// A run that goes wrong every time is tried three times, and the daemon goes on with the rest.
#[test]
fn three_failures_end_in_failed_and_the_next_file_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let data = goldens().join("data/chat.jsonl");
    ok(&["add", "--dir", &state, text_of(&data)]);
    let explodes = ["--set", "train.learning_rate=1e30", "--set", "train.max_steps=9"];
    let output = run(&[&["run", "--once", "--dir", &state], &QUICK[..], &explodes].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{log}");
    assert!(log.contains("attempt 1 of 3 failed") && log.contains("attempt 2 of 3"), "{log}");
    let failed = Path::new(&state).join("failed");
    let report: String = std::fs::read_dir(&failed)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "jsonl"))
        .flat_map(std::fs::read_to_string)
        .collect();
    assert!(report.contains("is NaN") || report.contains("is inf"), "{report}");
    assert!(report.contains("train.learning_rate"), "{report}");
    assert!(!Path::new(&state).join("model").exists(), "nothing was published");
    ok(&["add", "--dir", &state, text_of(&data)]);
    assert!(once(&state).status.success());
    assert!(Path::new(&state).join("model/config.json").exists());
}

#[test]
fn a_file_that_cannot_be_used_goes_to_failed_with_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let file = folder.path().join("bad.jsonl");
    put(&file, format!("{}nonsense\n", "{\"text\": \"fine\"}\n".repeat(6)));
    ok(&["add", "--dir", &state, text_of(&file)]);
    let output = once(&state);
    assert_eq!(output.status.code(), Some(4));
    let failed = Path::new(&state).join("failed");
    let texts: String = std::fs::read_dir(&failed)
        .unwrap()
        .flat_map(|entry| std::fs::read_to_string(entry.unwrap().path()))
        .collect();
    assert!(texts.contains("line 7") || texts.contains(":7"), "{texts}");
    assert!(texts.contains("not valid JSON"), "{texts}");
}

fn weights_of(state: &str) -> Vec<u8> {
    std::fs::read(Path::new(state).join("model/model.safetensors")).unwrap()
}

/// A state directory that has learned from a file, which waits again, and the weights.
fn learned_and_queued_again(folder: &Path) -> (String, Vec<u8>) {
    let state = state_of(folder);
    let data = goldens().join("data/chat.jsonl");
    ok(&["add", "--dir", &state, text_of(&data)]);
    assert!(once(&state).status.success());
    ok(&["add", "--dir", &state, text_of(&data)]);
    let weights = weights_of(&state);
    (state, weights)
}

#[test]
fn a_loss_that_is_no_number_never_reaches_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (state, before) = learned_and_queued_again(folder.path());
    let wild = ["--set", "train.learning_rate=1e38", "--set", "train.max_grad_norm=0"];
    let output = run(&[&["run", "--once", "--dir", &state], &QUICK[..], &wild].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{log}");
    assert!(log.contains("attempt 2 of 3 failed") && log.contains("is NaN"), "{log}");
    assert!(weights_of(&state) == before, "the model is what it was");
    assert!(Path::new(&state).join("failed/chat.jsonl").exists(), "it is given up: {log}");
}

/// A loss that is a number, and says that the model is good for nothing.
#[test]
fn a_run_that_diverges_never_reaches_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (state, before) = learned_and_queued_again(folder.path());
    let wild = ["--set", "train.learning_rate=5", "--set", "train.max_steps=9"];
    let output = run(&[&["run", "--once", "--dir", &state], &QUICK[..], &wild].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{log}");
    assert!(log.contains("training diverged: the loss ends at "), "{log}");
    assert!(weights_of(&state) == before, "the model is what it was");
    let failed = std::fs::read_dir(Path::new(&state).join("failed")).unwrap();
    let texts: String =
        failed.flat_map(|entry| std::fs::read_to_string(entry.unwrap().path())).collect();
    assert!(texts.contains("train.learning_rate, which is 5"), "{texts}");
}

#[test]
fn a_file_that_is_retried_after_it_was_learned_from_is_learned_from_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    assert!(once(&state).status.success());
    let weights = || weights_of(&state);
    let first = weights();
    ok(&["retry", "--dir", &state, "1"]);
    assert!(once(&state).status.success());
    assert!(weights() != first, "it went on from the first model");
}
