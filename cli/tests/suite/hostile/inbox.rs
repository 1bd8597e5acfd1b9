//! Things in the inbox that are no files, or not for long.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{daemon, once, spawn, state_for, until};
use crate::support::{model, ok, put, text_of};

const RECORD: &str = "{\"text\": \"one two three four\"}\n";

/// Whether there is one now: only root may make it.
fn make_device(path: &Path, kind: [&str; 3]) -> bool {
    let made = Command::new("mknod").arg(path).args(kind).output();
    let made = made.is_ok_and(|made| made.status.success());
    if !made {
        std::io::stderr().write_all(b"SKIPPED: a device in the inbox\n").unwrap();
    }
    made
}

#[test]
fn what_is_no_file_is_left_alone_and_what_is_one_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &model("qwen3"));
    let inbox = Path::new(&state).join("inbox");
    let at = |name: &str| inbox.join(name);
    symlink("/etc/passwd", at("link.jsonl")).unwrap();
    symlink(at("nowhere"), at("broken.jsonl")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.jsonl")).status().unwrap().success());
    let _socket = UnixListener::bind(at("socket.jsonl")).unwrap();
    // The numbers of /dev/zero, which can be read for ever.
    let has_device = make_device(&at("device.jsonl"), ["c", "1", "5"]);
    fs::create_dir(at("folder.jsonl")).unwrap();
    File::create(at("endless.jsonl")).unwrap().set_len(1 << 43).unwrap();
    put(&at("evil\u{1b}[2J\u{202e}\n.jsonl"), RECORD);
    put(&at("closed.jsonl"), RECORD);
    fs::set_permissions(at("closed.jsonl"), fs::Permissions::from_mode(0o0)).unwrap();
    let long = format!("{}.jsonl", "n".repeat(249));
    put(&at(&long), RECORD);
    put(&at("$(touch x) '..' ;.jsonl"), RECORD);
    let seen = once(&state, &[]);
    assert_eq!(seen.code, Some(0), "{}", seen.said);
    for (name, says) in [
        ("link", "symbolic link"),
        ("broken", "symbolic link"),
        ("pipe", "a pipe"),
        ("socket", "a pipe, a socket"),
        ("folder", "is a folder"),
        ("endless", "limits.max_file"),
        ("evil", "control characters"),
        ("device", "a pipe, a socket or a device"),
    ] {
        if name == "device" && !has_device {
            continue;
        }
        let line = seen.said.lines().find(|line| line.contains(&format!("inbox/{name}")));
        assert!(line.is_some_and(|line| line.contains(says)), "{name}: {}", seen.said);
        assert_eq!(
            fs::read_dir(&inbox)
                .unwrap()
                .flatten()
                .filter(|entry| { entry.file_name().to_string_lossy().starts_with(name) })
                .count(),
            1,
            "{name} was left where it is"
        );
    }
    assert!(!seen.said.contains('\u{1b}') && !seen.said.contains('\u{202e}'));
    let done = Path::new(&state).join("done");
    assert!(done.join("$(touch x) '..' ;.jsonl").exists());
    assert!(done.join(format!("{}.jsonl", "n".repeat(194))).exists(), "shortened");
    // Whoever is root reads it all the same.
    let readable = File::open(at("closed.jsonl")).is_ok() || done.join("closed.jsonl").exists();
    assert_eq!(seen.said.contains("cannot be read by this user"), !readable, "{}", seen.said);
}

#[test]
fn a_hard_link_is_copied_and_its_other_name_stays() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &model("qwen3"));
    let other = folder.path().join("other.jsonl");
    put(&other, RECORD.repeat(3));
    let name = Path::new(&state).join("inbox/linked.jsonl");
    fs::hard_link(&other, &name).unwrap();
    let seen = once(&state, &[]);
    assert_eq!(seen.code, Some(0), "{}", seen.said);
    assert!(seen.said.contains("hard links: it is copied"), "{}", seen.said);
    assert!(!name.exists() && other.exists());
    let done = Path::new(&state).join("done/linked.jsonl");
    put(&other, "changed since");
    assert_eq!(fs::read_to_string(done).unwrap(), RECORD.repeat(3));
}

/// What is trained on is what was hashed, or nothing.
#[test]
fn a_file_that_is_changed_after_the_claim_is_not_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_for(folder.path(), &model("qwen3"));
    let file = Path::new(&state).join("inbox/a.jsonl");
    put(&file, RECORD.repeat(40_000));
    // Open for appending before it is queued; `add` of a closed file would take a copy.
    let mut writer = File::options().append(true).open(&file).unwrap();
    let mut running = spawn(&daemon(&state, &["--once"]));
    let claimed = Path::new(&state).join("processing/1-a.jsonl");
    drop(writer);
    until("the claim", || claimed.exists());
    writer = File::options().append(true).open(&claimed).unwrap();
    let job = || -> Value {
        let jobs: Value = serde_json::from_str(&ok(&["jobs", "--dir", &state, "--json"])).unwrap();
        jobs[0].clone()
    };
    until("the hash", || job()["sha256"].is_string());
    writer.write_all(b"{\"text\": \"somebody else's words\"}\n").unwrap();
    running.wait().unwrap();
    let job = job();
    assert_eq!(job["state"], "failed", "{job}");
    assert!(job["report"].to_string().contains("was changed after it was hashed"), "{job}");
    let _ = text_of(&claimed);
}
