//! What the user owns is not lost by a slip of the hand.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::evals::{once, state_of};
use crate::support::{chandler, fails, goldens, model, ok, run, text_of};

/// A state directory in `folder` that has learned from a file, and its model's weights.
fn learned(folder: &Path) -> (String, PathBuf) {
    let state = state_of(folder);
    once(&state, &["train.max_steps=1"]);
    let weights = Path::new(&state).join("model/model.safetensors");
    (state, weights)
}

fn put_file(state: &str, name: &str) {
    let inbox = Path::new(state).join("inbox");
    std::fs::copy(goldens().join("data/messages.jsonl"), inbox.join(name)).unwrap();
}

fn only_snapshot(state: &str) -> PathBuf {
    let mut all = std::fs::read_dir(Path::new(state).join("snapshots")).unwrap();
    let first = all.next().unwrap().unwrap().path();
    assert!(all.next().is_none());
    first
}

#[test]
fn a_model_that_is_gone_is_no_reason_to_begin_with_the_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let (state, weights) = learned(folder.path());
    let snapshot = only_snapshot(&state);
    let kept = std::fs::read(snapshot.join("model.safetensors")).unwrap();
    std::fs::remove_dir_all(weights.parent().unwrap()).unwrap();
    put_file(&state, "b.jsonl");
    let refusal = fails(8, &["run", "--once", "--dir", &state, "--set", "train.max_steps=1"]);
    assert!(refusal.contains("1 job was learned from"), "{refusal}");
    assert!(refusal.contains(text_of(Path::new(snapshot.file_name().unwrap()))), "{refusal}");
    assert!(refusal.contains("chandler init --dir NEW --model"), "{refusal}");
    assert!(Path::new(&state).join("inbox/b.jsonl").exists(), "the file waits");
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), kept);
}

/// Writes into a file where it lies, as `cp` onto it does.
fn damage(file: &Path) {
    let mut file = std::fs::File::options().write(true).open(file).unwrap();
    file.seek(std::io::SeekFrom::End(-8)).unwrap();
    file.write_all(&[0xff; 8]).unwrap();
}

fn name_of(path: &Path) -> &str {
    text_of(Path::new(path.file_name().unwrap()))
}

#[test]
fn what_is_written_into_the_model_is_not_written_into_its_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let (state, weights) = learned(folder.path());
    let kept = std::fs::read(&weights).unwrap();
    damage(&weights);
    let snapshot = only_snapshot(&state).join("model.safetensors");
    assert!(std::fs::read(snapshot).unwrap() == kept);
}

#[test]
fn a_snapshot_takes_the_models_place_and_the_model_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (state, weights) = learned(folder.path());
    let read = |path: &Path| std::fs::read(path).unwrap();
    // As the day before would have left it.
    let (today, first) = (only_snapshot(&state), read(&weights));
    let yesterday = today.with_file_name("2026-01-01");
    chandler_durable::rename_durably(&chandler_durable::RealFs, &today, &yesterday).unwrap();
    put_file(&state, "b.jsonl");
    once(&state, &["train.max_steps=1"]);
    let second = read(&weights);
    assert!(first != second);
    ok(&["rollback", "2026-01-01", "--dir", &state]);
    assert!(read(&weights) == first);
    let list: Value = serde_json::from_str(&ok(&["rollback", "--dir", &state, "--json"])).unwrap();
    let list = list.as_array().unwrap();
    let in_place = |snapshot: &&Value| snapshot["in_place"] == true;
    let names: Vec<&str> = list.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(list.iter().filter(in_place).count(), 1, "{list:?}");
    assert_eq!((names.len(), names[0]), (3, "2026-01-01"));
    let replaced = today.with_file_name(names[2]);
    assert!(
        names[2].starts_with("replaced-") && read(&replaced.join("model.safetensors")) == second
    );
    // The next job begins with what was put there, and what was replaced stays.
    put_file(&state, "c.jsonl");
    once(&state, &["train.max_steps=1", "daemon.keep_snapshots=1"]);
    assert!(!today.with_file_name("2026-01-01").exists() && replaced.exists());
    ok(&["rollback", names[2], "--dir", &state]);
    assert!(read(&weights) == second);
}

#[test]
fn a_snapshot_is_not_put_in_place_where_that_would_lose_something() {
    let folder = tempfile::tempdir().unwrap();
    let (state, weights) = learned(folder.path());
    let snapshot = only_snapshot(&state);
    let refused = |code: i32, name: &str| {
        let before = std::fs::read(&weights).unwrap();
        let words = fails(code, &["rollback", name, "--dir", &state]);
        assert!(std::fs::read(&weights).unwrap() == before, "{words}");
        words
    };
    assert!(refused(2, "2020-01-01").contains("no snapshot"));
    assert!(refused(2, "../model").contains("no snapshot"));
    // A job that has come half way.
    put_file(&state, "b.jsonl");
    let checkpoint = Path::new(&state).join("checkpoints/job-2/checkpoint-1");
    let mut args = vec!["run", "--once", "--dir", &state, "--set", "train.max_steps=100000"];
    args.extend(["--set", "train.save_steps=1", "--set", "daemon.settle_seconds=0"]);
    let mut daemon = chandler().args(args).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !checkpoint.exists() {
        assert!(daemon.try_wait().unwrap().is_none(), "it ended before it came half way");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(refused(3, name_of(&snapshot)).contains("pid"), "a daemon runs");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let words = refused(1, name_of(&snapshot));
    assert!(words.contains("job 2 (b.jsonl) is under way") && words.contains("skip 2"), "{words}");
    // One that is not what it was.
    damage(&snapshot.join("model.safetensors"));
    assert!(refused(1, name_of(&snapshot)).contains("damaged: model.safetensors"));
    assert!(run(&["rollback", "--dir", &state]).status.success());
}

fn copy_of(name: &str, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn another_model_path_is_refused_once_there_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let (state, weights) = learned(folder.path());
    let before = std::fs::read(&weights).unwrap();
    put_file(&state, "b.jsonl");
    for (name, command) in [("smol-llama", "run"), ("gemma3", "run"), ("gemma3", "doctor")] {
        let other = format!("model.path={}", model(name));
        let once = if command == "run" { &["--once"][..] } else { &[] };
        let args = [&[command, "--dir", &state, "--set", &other], once].concat();
        let output = run(&args);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(if command == "run" { 2 } else { 1 }), "{said}");
        assert!(said.contains(&model(name)) && said.contains(&model("qwen3")), "{said}");
        assert!(said.contains("chandler init --dir NEW --model"), "{said}");
    }
    assert!(std::fs::read(&weights).unwrap() == before);
    // The same model elsewhere is the same; and what it was is told from one model to the next.
    let moved = folder.path().join("moved");
    copy_of("qwen3", &moved);
    let moved = format!("model.path={}", text_of(&moved));
    once(&state, &["train.max_steps=1", &moved]);
    let other = format!("model.path={}", model("smol-llama"));
    fails(2, &["run", "--once", "--dir", &state, "--set", &other]);
}

#[test]
fn a_run_without_a_daemon_writes_over_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    copy_of("qwen3", &base);
    let data = goldens().join("data/messages.jsonl");
    let train = |output: &Path, extra: &[&'static str]| {
        let args = ["train", "--model", text_of(&base), "--data", text_of(&data), "--output"];
        let quick = ["train.max_steps=2", "train.save_steps=1", "eval.eval_steps=0"];
        let quick = quick.into_iter().flat_map(|set| ["--set", set]);
        let args = args.into_iter().chain([text_of(output)]).map(str::to_owned);
        let args = args.chain(quick.chain(extra.iter().copied()).map(str::to_owned));
        args.collect::<Vec<String>>()
    };
    let succeeds = |output: &Path, extra: &[&'static str]| {
        let args = train(output, extra);
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = |output: &Path, extra: &[&'static str]| {
        let args = train(output, extra);
        fails(2, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    succeeds(&out, &[]);
    let words = refused(&out, &["--set", "train.learning_rate=1e-3"]);
    assert!(words.contains("checkpoint-1") && words.contains("--overwrite"), "{words}");
    assert!(out.join("checkpoint-1").exists() && out.join("checkpoint-2").exists());
    succeeds(&out, &["--resume"]);
    succeeds(&out, &["--overwrite"]);
    // Neither over what it begins from, nor into a state directory.
    let weights = std::fs::read(base.join("model.safetensors")).unwrap();
    for extra in [&[][..], &["--resume"], &["--overwrite"]] {
        assert!(refused(&base, extra).contains("begins from"));
    }
    assert!(std::fs::read(base.join("model.safetensors")).unwrap() == weights);
    let state = PathBuf::from(state_of(folder.path()));
    assert!(refused(&state, &["--overwrite"]).contains("state directory"));
    assert!(!state.join("config.json").exists());
}

#[test]
fn a_folder_that_is_not_there_is_asked_of_nobody() {
    let folder = tempfile::tempdir().unwrap();
    // Who asks the hub finds nobody at this address, and says so.
    let said = |code: i32, args: &[&str]| {
        let output = chandler()
            .args(args)
            .current_dir(folder.path())
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("HF_HOME", folder.path().join("hub"))
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(!said.contains("cannot be reached"), "{said}");
        said
    };
    said(0, &["init", "--dir", "my-model", "--model", &model("qwen3")]);
    let words = said(2, &["chat", "--model", "my-model/model"]);
    assert!(words.contains("has no model yet: no job has been done"), "{words}");
    let words = said(2, &["plan", "--model", "my-model/modle"]);
    assert!(words.contains("there is no folder my-model/modle"), "{words}");
    for wrong in ["", "./nothere", "~/x", "my-model/chandler.toml", "my-model"] {
        said(2, &["init", "--dir", "other", "--model", wrong]);
        assert!(!folder.path().join("other").exists(), "nothing is made for {wrong:?}");
    }
    said(0, &["init", "--dir", "by-id", "--model", "owner/name"]);
    // A relative path is meant from here, wherever it is kept.
    copy_of("qwen3", &folder.path().join("base"));
    said(0, &["init", "--dir", "deep/er/state", "--model", "./base"]);
    let shown =
        said(0, &["run", "--once", "--dir", "deep/er/state", "--set", "http.enabled=false"]);
    assert!(!shown.contains("error"), "{shown}");
    std::fs::remove_dir_all(folder.path().join("base")).unwrap();
    // Before there is any file to learn from.
    let words = said(2, &["run", "--once", "--dir", "deep/er/state"]);
    assert!(words.contains("there is no folder") && words.contains("base"), "{words}");
}
