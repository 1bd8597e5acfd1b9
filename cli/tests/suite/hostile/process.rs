//! The process that reads: it is bounded, watched, and never outlives what it works for.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    children_of, copy_of, daemon, edit, endless, endless_line, is_alive, once, spawn, state_for,
    until, watched,
};
use crate::support::{fails, goldens, model, ok, put, run, text_of};

const STALL: [&str; 2] = ["--set", "limits.stall_seconds=1"];

#[test]
fn a_tokenizer_that_never_ends_is_ended_and_the_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = endless(folder.path());
    let file = folder.path().join("data.jsonl");
    endless_line(&file);
    let out = folder.path().join("out");
    let args = ["train", "--model", &model, "--data", text_of(&file), "--output", text_of(&out)];
    let seen = watched(&[&args[..], &STALL].concat());
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("one of the lines 1 to 2 of"), "{}", seen.said);
    assert!(seen.said.contains("limits.stall_seconds") && seen.said.contains("hint: "));
    assert!(seen.seconds < 20.0, "{} s", seen.seconds);
    let preview = ["data", "preview", text_of(&file), "--model", &model];
    let seen = watched(&[&preview[..], &STALL].concat());
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.printed.contains("line 1:"), "the first line is shown: {}", seen.printed);
    // CPU time alone, where the watch is more patient.
    let cpu = ["--set", "limits.stall_seconds=4", "--set", "limits.cpu_seconds_per_mib=0"];
    let seen = watched(&[&args[..], &cpu].concat());
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.seconds < 30.0, "{} s", seen.seconds);
}

#[test]
fn the_daemon_outlives_a_file_that_its_worker_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &endless(folder.path()));
    let bad = folder.path().join("bad.jsonl");
    endless_line(&bad);
    let good = folder.path().join("good.jsonl");
    put(&good, "{\"text\": \"one two three\"}\n".repeat(4));
    ok(&["add", "--dir", &state, text_of(&bad), text_of(&good)]);
    let seen = once(&state, &STALL);
    assert_eq!(seen.code, Some(4), "one file failed: {}", seen.said);
    let place = |file: &str| Path::new(&state).join(file);
    assert!(place("done/good.jsonl").exists(), "{}", seen.said);
    let report = std::fs::read_to_string(place("failed/bad.jsonl.report.txt")).unwrap();
    assert!(report.contains("lines 1 to 2") && report.contains("after 1 attempt"), "{report}");
}

/// The tokenizer grows what it is given; where the text of ours does so too, the model is to blame.
#[test]
fn memory_is_bounded_and_whose_fault_it_is_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data.jsonl");
    put(&file, format!("{{\"text\": \"{}\"}}\n", "Q".repeat(2000)));
    for (letter, code, blamed) in [("Q", 4, "line 1 of"), ("a", 1, "the tokenizer or the chat")] {
        let inner = folder.path().join(letter);
        std::fs::create_dir(&inner).unwrap();
        let model = copy_of("qwen3", &inner);
        edit(&model.join("tokenizer.json"), |tokenizer| {
            tokenizer["normalizer"] = json!({
                "type": "Replace", "pattern": { "String": letter }, "content": "x".repeat(1 << 20)
            });
        });
        let out = folder.path().join("out");
        let mut args = vec!["train", "--model", text_of(&model), "--data", text_of(&file)];
        args.extend(["--output", text_of(&out), "--set", "limits.worker_memory=256MiB"]);
        let seen = watched(&args);
        assert_eq!(seen.code, Some(code), "{}", seen.said);
        assert!(seen.said.contains(blamed), "{}", seen.said);
        assert!(seen.said.contains("limits.worker_memory"), "{}", seen.said);
        assert!(seen.peak_bytes > 10 << 20, "it was not seen: {}", seen.peak_bytes);
        assert!(seen.own_peak_bytes < 300 << 20, "{} bytes", seen.own_peak_bytes);
        assert!(seen.seconds < 30.0, "{} s", seen.seconds);
    }
}

#[test]
fn a_stop_and_a_skip_end_the_worker() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &endless(folder.path()));
    let bad = folder.path().join("bad.jsonl");
    endless_line(&bad);
    ok(&["add", "--dir", &state, text_of(&bad)]);
    let mut running = spawn(&daemon(&state, &[]));
    let worker = || children_of(running.id()).first().copied();
    until("the worker", || worker().is_some());
    let first = worker().unwrap();
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    until("the end of the worker", || !is_alive(first));
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert!(ok(&["jobs", "--dir", &state]).contains("queued"), "the job keeps its place");

    let mut running = spawn(&daemon(&state, &[]));
    until("the job", || ok(&["status", "--dir", &state]).contains("validating"));
    until("the worker", || !children_of(running.id()).is_empty());
    ok(&["skip", "--dir", &state]);
    until("the skip", || Path::new(&state).join("failed/bad.jsonl.report.txt").exists());
    assert!(ok(&["jobs", "--dir", &state]).contains("skipped"));
    assert!(children_of(running.id()).is_empty());
    ok(&["stop", "--dir", &state]);
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

#[test]
fn the_worker_dies_with_its_parent_and_heeds_no_signals_meant_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = endless(folder.path());
    let file = folder.path().join("data.jsonl");
    endless_line(&file);
    let out = folder.path().join("out");
    let mut parent =
        spawn(&["train", "--model", &model, "--data", text_of(&file), "--output", text_of(&out)]);
    until("the worker", || !children_of(parent.id()).is_empty());
    let worker = children_of(parent.id())[0];
    // As a service manager does that signals every process of a service.
    std::thread::sleep(std::time::Duration::from_millis(300));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(Pid::from_raw(worker as i32).unwrap(), signal).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(is_alive(worker));
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the worker's end", || !is_alive(worker));
}

#[test]
fn the_worker_is_hidden_and_wants_an_errand() {
    assert!(!ok(&["--help"]).contains("read-foreign"));
    let output = run(&["read-foreign-text"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot begin"));
}

#[test]
fn limits_are_checked() {
    let name = model("qwen3");
    let data = goldens().join("data/chat.jsonl");
    let error = fails(
        2,
        &[
            "data",
            "preview",
            text_of(&data),
            "--model",
            &name,
            "--set",
            "limits.worker_memory=1MiB",
        ],
    );
    assert!(error.contains("limits.worker_memory") && error.contains("64.00 MiB"), "{error}");
}
