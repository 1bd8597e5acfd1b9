//! What strangers write: each hazard with its message, and with time and memory where those are
//! the point.

mod inbox;
mod lines;
mod models;
mod process;
mod secrets;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{chandler, model, ok, put, text_of};

/// How a command ended, and what it took.
pub(crate) struct Watched {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) printed: String,
    pub(crate) seconds: f64,
    /// Most resident memory that its child was seen with.
    pub(crate) peak_bytes: u64,
    /// The same without its binary.
    pub(crate) own_peak_bytes: u64,
}

/// Runs a command and watches its child's memory.
pub(crate) fn watched(args: &[&str]) -> Watched {
    let begun = Instant::now();
    let mut command = chandler();
    let child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.stdin(Stdio::null()).spawn().unwrap();
    let parent = child.id();
    let over = std::sync::atomic::AtomicBool::new(false);
    let (output, (peak_bytes, own_peak_bytes)) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut peak, mut own) = (0, 0);
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                for child in children_of(parent) {
                    peak = peak_of(child).unwrap_or(0).max(peak);
                    own = own_peak_of(child).unwrap_or(0).max(own);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (peak, own)
        });
        let output = child.wait_with_output().unwrap();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        (output, watch.join().unwrap())
    });
    Watched {
        code: output.status.code(),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
        printed: String::from_utf8_lossy(&output.stdout).into_owned(),
        seconds: begun.elapsed().as_secs_f64(),
        peak_bytes,
        own_peak_bytes,
    }
}

/// The processes whose parent this is.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| status_of(*pid, "PPid:").is_some_and(|ppid| ppid == u64::from(parent)))
        .collect()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

fn peak_of(pid: u32) -> Option<u64> {
    Some(status_of(pid, "VmHWM:")? << 10)
}

/// Without the pages of the binary itself, which is large with all that it has in it for tests.
fn own_peak_of(pid: u32) -> Option<u64> {
    Some(peak_of(pid)?.saturating_sub(status_of(pid, "RssFile:")? << 10))
}

fn status_of(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A copy of a model whose files can be changed.
pub(crate) fn copy_of(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// Changes a JSON file in place.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    put(path, value.to_string());
}

/// A state directory for this model, quick to run in.
pub(crate) fn state_for(folder: &Path, model: &str) -> String {
    let state = text_of(&folder.join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", model]);
    state
}

/// `chandler run --once` with little to do.
pub(crate) fn once(state: &str, extra: &[&str]) -> Watched {
    watched(&[&daemon(state, &["--once"])[..], extra].concat())
}

pub(crate) fn daemon<'a>(state: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--dir", state];
    args.extend(extra);
    for setting in [
        "train.max_steps=2",
        "train.per_device_train_batch_size=2",
        "eval.eval_steps=0",
        "data.max_length=64",
        "daemon.min_free_gib=0",
        "daemon.restart=false",
        "daemon.settle_seconds=0",
        "daemon.poll_seconds=0.05",
    ] {
        args.extend(["--set", setting]);
    }
    args
}

/// A file that takes the tokenizer of [`endless`] longer than anybody waits.
pub(crate) fn endless_line(path: &Path) {
    put(path, format!("{{\"text\": \"fine\"}}\n{{\"text\": \"{}\"}}\n", "q".repeat(4 << 20)));
}

/// A model whose tokenizer goes back and forth over runs of `q`.
pub(crate) fn endless(folder: &Path) -> String {
    let model = copy_of("qwen3", folder);
    edit(&model.join("tokenizer.json"), |tokenizer| {
        tokenizer["pre_tokenizer"] = serde_json::json!({
            "type": "Split", "pattern": { "Regex": "q*(?<!q)q*w|[^q]+" },
            "behavior": "Isolated", "invert": false
        });
    });
    text_of(&model).to_owned()
}

/// Waits until something is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn spawn(args: &[&str]) -> std::process::Child {
    let mut command: Command = chandler();
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
