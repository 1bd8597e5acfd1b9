//! Bad input: each with a code of its own kind and a message that says what to do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::{chandler, fails, goldens, model, ok, put, run, text_of};

fn train(model: &str, data: &Path, extra: &[&str], code: i32) -> String {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let fixed = ["train", "--model", model, "--data", text_of(data), "--output", text_of(&out)];
    fails(code, &[&fixed, extra].concat())
}

fn file(folder: &Path, text: &str) -> std::path::PathBuf {
    let path = folder.join("data.jsonl");
    put(&path, text);
    path
}

fn copy_without(name: &str, folder: &Path, leave_out: &str) -> String {
    for entry in fs::read_dir(model(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != leave_out {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    text_of(folder).to_owned()
}

#[test]
fn training_files() {
    let folder = tempfile::tempdir().unwrap();
    let name = model("qwen3");
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"x\"}}", "long ".repeat(60));
    let seventh = format!("{}{{\"text\": \n", "{\"text\": \"fine\"}\n".repeat(6));
    for (text, extra, says) in [
        ("", &[][..], "holds no record"),
        (&seventh, &[], ":7: it is not valid JSON"),
        ("{\"q\": 1}\n", &[], "none of the keys"),
        (&long, &["--set", "data.max_length=8"], "no token carries loss"),
    ] {
        let error = train(&name, &file(folder.path(), text), extra, 4);
        assert!(error.contains(says), "{error}");
    }
    let error = train(&name, &folder.path().join("absent.jsonl"), &[], 1);
    assert!(error.contains("absent.jsonl"), "{error}");
}

#[test]
fn models() {
    let data = goldens().join("data/chat.jsonl");
    for (leave_out, says) in [
        ("tokenizer.json", "has no tokenizer.json"),
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let error = train(&copy_without("qwen3", folder.path(), leave_out), &data, &[], 1);
        assert!(error.contains(says), "{error}");
    }
    // Without a template, conversations cannot be rendered.
    let folder = tempfile::tempdir().unwrap();
    let bare = copy_without("qwen3", folder.path(), "chat_template.jinja");
    let error = train(&bare, &data, &[], 4);
    assert!(error.contains("no chat template"), "{error}");
    // A vocabulary that is smaller than the tokenizer's ids.
    let folder = tempfile::tempdir().unwrap();
    let small = copy_without("smol-llama", folder.path(), "tokenizer.json");
    fs::copy(
        Path::new(&model("gemma2")).join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .unwrap();
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replace("2048", "100");
    put(&config, text);
    let error = train(&small, &data, &[], 4);
    assert!(error.contains("outside of the model's vocabulary of 100"), "{error}");
    let error = train("no-such-org/no-such-model", &data, &[], 1);
    assert!(error.contains("hint:"), "{error}");
}

#[test]
fn an_unreachable_hub() {
    let folder = tempfile::tempdir().unwrap();
    let output = chandler()
        .args(["plan", "--model", "owner/model"])
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", folder.path())
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot be reached") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn configuration() {
    let name = model("qwen3");
    let error = fails(2, &["plan", "--model", &name, "--set", "train.batch_size=4"]);
    assert!(error.contains("per_device_train_batch_size") || error.contains("batch"), "{error}");
    let error = fails(2, &["plan", "--model", &name, "--set", "train.learning_rate=fast"]);
    assert!(error.contains("fast"), "{error}");
    let error = fails(2, &["plan"]);
    assert!(error.contains("no model is configured"), "{error}");
}

#[test]
fn the_inbox() {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    let real = folder.path().join("real.jsonl");
    fs::copy(goldens().join("data/chat.jsonl"), &real).unwrap();
    symlink(&real, Path::new(&state).join("inbox/link.jsonl")).unwrap();
    let output = run(&["run", "--once", "--dir", &state, "--set", "daemon.settle_seconds=0"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("link.jsonl") && log.contains("symbolic link"), "{log}");
    assert!(real.exists(), "what it points to is left alone");
    // A file that still grows stays where it is.
    let growing = Path::new(&state).join("inbox/growing.jsonl");
    put(&growing, "{\"text\": \"first\"}\n");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                use std::io::Write;
                let mut file = fs::OpenOptions::new().append(true).open(&growing).unwrap();
                file.write_all(b"{\"text\": \"more\"}\n").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        let output = run(&["run", "--once", "--dir", &state, "--set", "daemon.settle_seconds=1"]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(log.contains("still being written"), "{log}");
    });
    assert!(growing.exists());
}

#[test]
fn a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    let error =
        fails(6, &["run", "--once", "--dir", &state, "--set", "daemon.min_free_gib=999999"]);
    assert!(error.contains("bytes free"), "{error}");
    let jobs = ok(&["jobs", "--dir", &state]);
    assert!(jobs.contains("queued"), "the job keeps its place: {jobs}");
}

#[test]
fn a_place_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join("file"), "");
    let state = folder.path().join("file/state");
    let error = fails(8, &["init", "--dir", text_of(&state)]);
    assert!(error.contains("file/state"), "{error}");
}
