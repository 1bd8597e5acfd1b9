//! kill -9, and what comes after it.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{bits, chandler, goldens, metrics, model, ok, put, text_of};

const STEPS: &str = "train.max_steps=40";

fn train(out: &Path, resume: bool) -> std::process::Command {
    let data = goldens().join("data/chat.jsonl");
    let mut command = chandler();
    command
        .args(["train", "--model", &model("qwen3"), "--data", text_of(&data)])
        .args(["--output", text_of(&out.join("out"))])
        .args(["--metrics", text_of(&out.join("metrics.jsonl"))])
        .args(["--set", STEPS, "--set", "train.save_steps=5", "--set", "eval.eval_steps=7"])
        .args(["--set", "eval.samples=1", "--set", "eval.max_new_tokens=3"])
        .args(["--set", "train.per_device_train_batch_size=2", "--set", "data.max_length=160"])
        .args(resume.then_some("--resume"))
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Kills the child as soon as the file has so many lines.
fn kill_after(mut child: Child, file: &Path, wanted: usize) {
    let begun = Instant::now();
    while lines(file) < wanted {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never got to {wanted}");
        assert!(child.try_wait().unwrap().is_none(), "it ended before {wanted}");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let whole = tempfile::tempdir().unwrap();
    assert!(train(whole.path(), false).status().unwrap().success());
    let expected = bits(&metrics(&whole.path().join("metrics.jsonl")));
    assert_eq!(expected.len(), 40);

    let killed = tempfile::tempdir().unwrap();
    let file = killed.path().join("metrics.jsonl");
    // The first kill comes before any checkpoint, so that --resume has to begin anew.
    for (round, wanted) in [3, 8, 21, 33].into_iter().enumerate() {
        let child = train(killed.path(), round > 0).spawn().unwrap();
        kill_after(child, &file, wanted);
    }
    assert!(train(killed.path(), true).status().unwrap().success());
    assert_eq!(bits(&metrics(&file)), expected);
    let weights = |folder: &Path| fs::read(folder.join("out/model.safetensors")).unwrap();
    assert!(weights(whole.path()) == weights(killed.path()), "the same model, byte for byte");
}

#[test]
fn a_killed_run_goes_on_bit_for_bit_on_other_threads_and_with_other_blocks_kept() {
    let whole = tempfile::tempdir().unwrap();
    assert!(train(whole.path(), false).env("RAYON_NUM_THREADS", "2").status().unwrap().success());
    let killed = tempfile::tempdir().unwrap();
    let file = killed.path().join("metrics.jsonl");
    let life = |resume: bool, threads: &str, set: &[&str]| {
        let mut command = train(killed.path(), resume);
        command.env("RAYON_NUM_THREADS", threads);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command
    };
    kill_after(life(false, "1", &[]).spawn().unwrap(), &file, 9);
    let little = ["train.gradient_checkpointing=true"];
    kill_after(life(true, "3", &little).spawn().unwrap(), &file, 18);
    let some = ["train.activation_memory=300KiB"];
    kill_after(life(true, "1", &some).spawn().unwrap(), &file, 29);
    assert!(life(true, "2", &little).status().unwrap().success());
    let expected = bits(&metrics(&whole.path().join("metrics.jsonl")));
    assert_eq!(bits(&metrics(&file)), expected);
    let weights = |folder: &Path| fs::read(folder.join("out/model.safetensors")).unwrap();
    assert!(weights(whole.path()) == weights(killed.path()), "the same model, byte for byte");
}

/// Steps of the newest run in the database, through `jobs --json`'s own report and the model.
fn state_with_file(folder: &Path) -> String {
    let state = folder.join("state");
    let state = text_of(&state).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    let data = goldens().join("data/chat.jsonl");
    ok(&["add", "--dir", &state, text_of(&data)]);
    state
}

fn run_once(state: &str) -> std::process::Command {
    let mut command = chandler();
    command
        .args(["run", "--once", "--dir", state, "--set", STEPS, "--set", "train.save_steps=5"])
        .args(["--set", "train.per_device_train_batch_size=2", "--set", "data.max_length=160"])
        .args(["--set", "eval.eval_steps=0", "--set", "daemon.min_free_gib=0"])
        .args(["--set", "daemon.settle_seconds=0"])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    command
}

#[test]
fn a_killed_daemon_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = state_with_file(&folder.path().join("a"));
    assert!(run_once(&whole).status().unwrap().success());
    let killed = state_with_file(&folder.path().join("b"));
    let checkpoint = |step: u64| {
        Path::new(&killed).join(format!("checkpoints/job-1/checkpoint-{step}/manifest.json"))
    };
    for step in [5, 20] {
        let child = run_once(&killed).spawn().unwrap();
        kill_after(child, &checkpoint(step), 1);
        let status: Value =
            serde_json::from_str(&ok(&["status", "--dir", &killed, "--json"])).unwrap();
        assert!(status.is_object());
    }
    assert!(run_once(&killed).status().unwrap().success());
    let weights = |state: &str| fs::read(Path::new(state).join("model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&killed), "the same model, byte for byte");
    assert_eq!(fs::read_dir(Path::new(&killed).join("done")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(Path::new(&killed).join("processing")).unwrap().count(), 0);
}

#[test]
fn a_stop_finishes_the_step_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_with_file(folder.path());
    let mut child = run_once(&state);
    let mut child = child.args(["--set", "daemon.keep_checkpoints=1"]).spawn().unwrap();
    let first = Path::new(&state).join("checkpoints/job-1/checkpoint-5/manifest.json");
    let begun = Instant::now();
    while !first.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&state).join("model").exists(), "it was stopped in time");
    let kept = fs::read_dir(Path::new(&state).join("checkpoints/job-1")).unwrap().count();
    assert!(kept <= 1, "{kept} checkpoints, that of the stop among them");
    assert!(run_once(&state).status().unwrap().success());
    assert!(Path::new(&state).join("model/config.json").exists());
    put(&folder.path().join("unused"), b"");
}
