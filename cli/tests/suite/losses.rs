//! What the user owns is not lost by a slip of the hand.

use std::path::{Path, PathBuf};

use crate::evals::{once, state_of};
use crate::support::{fails, goldens, text_of};

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
