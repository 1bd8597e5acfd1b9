//! The terminal side: JSON everywhere, logs, completions, manual pages, colours, the whole screen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use chandler_cli::commands::Cli;
use clap::CommandFactory;
use serde_json::Value;

use crate::python::skipped;
use crate::support::{chandler, fails, golden, goldens, model, ok, put, run, text_of};

const QUICK: [&str; 12] = [
    "--set",
    "train.max_steps=2",
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

fn json(args: &[&str]) -> Value {
    let text = ok(args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}\n{text}"))
}

/// The error that a command prints as JSON, with nothing on standard output.
fn json_error(code: i32, args: &[&str]) -> Value {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let error: Value = serde_json::from_str(errors.lines().last().unwrap()).unwrap();
    assert_eq!(error["exit"], code, "{error}");
    assert!(error["error"].is_string() && error["because"].is_array(), "{error}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
    error
}

/// Commands that this test does not have succeed, and why.
const ELSEWHERE: [(&str, &str); 16] = [
    ("bench checkpoint", "bench.rs"),
    ("bench generate", "bench.rs"),
    ("bench kernels", "bench.rs"),
    ("bench plan", "bench.rs"),
    ("bench train", "bench.rs"),
    ("chat", "chat.rs"),
    ("dashboard", "needs a daemon"),
    ("eval-now", "needs a daemon"),
    ("export adapter", "exports.rs"),
    ("export layers", "exports.rs"),
    ("notify test", "needs somebody to be told: notify.rs"),
    ("push", "needs a hub: model/tests/suite/push.rs"),
    ("quickstart", "takes a minute"),
    ("serve", "goes on until it is stopped"),
    ("service status", "needs a service manager"),
    ("stop", "needs a daemon"),
];

/// The command that arguments name, such as `data preview`.
fn leaf_of(args: &[&str]) -> String {
    let root = Cli::command();
    let (mut command, mut path) = (&root, vec![]);
    for word in args {
        if let Some(next) = command.find_subcommand(word) {
            command = next;
            path.push(*word);
        }
    }
    path.join(" ")
}

/// Every command that does something, those that only chandler itself starts left out.
fn leaves(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
    let shown: Vec<_> = command.get_subcommands().filter(|next| !next.is_hide_set()).collect();
    if shown.is_empty() {
        found.insert(path.to_owned());
    }
    for next in shown {
        leaves(next, format!("{path} {}", next.get_name()).trim(), found);
    }
}

#[test]
fn every_command_speaks_json() {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    let name = model("qwen3");
    let seen = RefCell::new(BTreeSet::new());
    let spoken = |args: &[&str]| {
        seen.borrow_mut().insert(leaf_of(args));
        json(args)
    };
    let spoken_lines = |args: &[&str]| -> Vec<Value> {
        seen.borrow_mut().insert(leaf_of(args));
        let text = ok(args);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let made = spoken(&["init", "--dir", &state, "--model", &name, "--json"]);
    assert!(made["config"].as_str().unwrap().ends_with("chandler.toml"));
    let golden = golden("smol-llama", "train.json");
    let data = goldens().join(golden["dataset"].as_str().unwrap());
    let jobs = spoken(&["--json", "add", "--dir", &state, text_of(&data), text_of(&data)]);
    let [first, second] = [0, 1].map(|turn| jobs[turn]["id"].as_i64().unwrap().to_string());
    let at = ["--dir", &state, "--json"];
    let with = |words: &[&str]| spoken(&[words, &at].concat());
    assert_eq!(with(&["jobs"]).as_array().unwrap().len(), 2);
    assert_eq!(with(&["status"])["running"], false);
    let paused = with(&["pause"]);
    assert_eq!((&paused["daemon"], &paused["job"]), (&Value::Bool(false), &Value::Null));
    assert!(with(&["resume"])["message"].is_string());
    let moved = with(&["priority", &first, "high"]);
    assert_eq!(moved["job"].to_string(), first);
    assert_eq!(with(&["skip", &second])["job"].to_string(), second);
    assert_eq!(with(&["retry", &second])["daemon"], false);
    assert_eq!(with(&["skip", &second])["daemon"], false);
    let tally = spoken(&[&["run", "--once"], &QUICK[..], &at].concat());
    assert_eq!(tally, serde_json::json!({ "done": 1, "failed": 0, "skipped": 0 }));
    let snapshots = with(&["rollback"]);
    assert_eq!(snapshots[0]["in_place"], true);
    let back = with(&["rollback", snapshots[0]["name"].as_str().unwrap()]);
    assert_eq!(back["snapshot"], snapshots[0]["name"]);
    assert_eq!(with(&["config", "show"])["train.seed"]["value"], 42);
    assert!(with(&["config", "reference"]).as_array().unwrap().len() > 50);
    seen.borrow_mut().insert("doctor".to_owned());
    let checks = run(&[&["doctor"], &at[..]].concat());
    let checks: Value = serde_json::from_slice(&checks.stdout).unwrap();
    for check in checks.as_array().unwrap() {
        assert!(check["name"].is_string() && check["detail"].is_string(), "{check}");
        let needs_cure = ["warning", "problem"].contains(&check["verdict"].as_str().unwrap());
        assert!(!needs_cure || check["hint"].is_string(), "{check}");
    }
    let copy = folder.path().join("copy");
    assert!(with(&["export", "model", text_of(&copy)])["dtype"].is_string());
    let gguf = folder.path().join("model.gguf");
    assert!(with(&["export", "gguf", text_of(&gguf)])["bytes"].is_number());
    for table in ["metrics", "evals", "scores", "samples", "events"] {
        let rows = spoken_lines(&[&["export", table], &at[..]].concat());
        assert!(rows.iter().all(Value::is_object), "{table}: {rows:?}");
    }
    let few = ["--set", "eval.samples=1", "--set", "eval.max_new_tokens=2", "--model", &name];
    let with_model = |words: &[&str]| spoken(&[words, &few, &["--json"]].concat());
    assert!(with_model(&["eval", "--data", text_of(&data)])["loss"].is_number());
    assert!(with_model(&["generate", "--prompt", "Hello", "--max-new-tokens", "2"]).is_object());
    assert!(with_model(&["plan"])["peak"].is_number());
    let preview = ["data", "preview", text_of(&data), "--rows", "2", "--model", &name, "--json"];
    assert!(spoken_lines(&preview)[0]["input_ids"].is_array());
    for change in ["install", "uninstall"] {
        let told = with(&["service", change, "--dry-run"]);
        assert!(told["file"].is_string() && told["commands"].is_array(), "{told}");
    }
    let out = folder.path().join("out");
    let trained = spoken(
        &[
            &[
                "train",
                "--data",
                text_of(&data),
                "--output",
                text_of(&out),
                "--model",
                &name,
                "--json",
            ],
            &QUICK[..],
        ]
        .concat(),
    );
    assert_eq!((&trained["outcome"], &trained["steps"]), (&"finished".into(), &2.into()));
    assert!(trained["loss"].is_number());
    assert!(with(&["man"])["page"].as_str().unwrap().contains(".TH"));
    assert_eq!(with(&["completions", "fish"])["shell"], "fish");
    for line in spoken_lines(&["logs", "--dir", &state, "--json"]) {
        assert!(line["message"].is_string(), "{line}");
    }
    for words in [&["dashboard"][..], &["stop"], &["eval-now"], &["skip"]] {
        json_error(7, &[words, &at].concat());
    }
    json_error(1, &[&["retry", "99"], &at[..]].concat());
    json_error(2, &[&["notify", "test"], &at[..]].concat());

    let mut all = BTreeSet::new();
    leaves(&Cli::command(), "", &mut all);
    let elsewhere = ELSEWHERE.map(|(command, _)| command.to_owned());
    let told: BTreeSet<String> = seen.into_inner().into_iter().chain(elsewhere).collect();
    assert_eq!(told, all, "a command is asked here for JSON, or named in ELSEWHERE");
}

#[test]
fn errors_are_json_where_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = text_of(&folder.path().join("nowhere")).to_owned();
    let error = json_error(8, &["status", "--dir", &nowhere, "--json"]);
    assert!(error["hint"].as_str().unwrap().contains("chandler init"));
    let error = json_error(2, &["status", "--jsn", "--json"]);
    assert!(error["error"].as_str().unwrap().contains("--jsn"), "{error}");
    json_error(2, &["add", "--json"]);
    json_error(2, &["--json"]);
    let error = json_error(2, &["config", "show", "--set", "train.learnin_rate=1", "--json"]);
    assert!(error.to_string().contains("learning_rate"), "{error}");
    // Help is no error.
    assert!(ok(&["status", "--help", "--json"]).contains("--watch"));
}

#[test]
fn completions_parse_and_pages_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("pages");
    ok(&["man", text_of(&pages)]);
    for name in ["chandler.1", "chandler-status.1", "chandler-config-reference.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
    let script = folder.path().join("chandler.bash");
    put(&script, ok(&["completions", "bash"]));
    let Ok(bash) = Command::new("bash").arg("-n").arg(&script).output() else {
        return skipped("there is no bash");
    };
    assert!(bash.status.success(), "{}", String::from_utf8_lossy(&bash.stderr));
}

#[test]
fn logs_are_chosen_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    assert_eq!(ok(&["logs", "--dir", &state]), "");
    ok(&[&["run", "--once", "--dir", &state], &QUICK[..]].concat());
    let shown = ok(&["logs", "--dir", &state]);
    assert!(shown.contains(" INFO chandler ") && shown.contains(" INFO ended: "), "{shown}");
    assert_eq!(ok(&["logs", "--dir", &state, "-n", "1"]).lines().count(), 1);
    assert_eq!(ok(&["logs", "--dir", &state, "--level", "error"]), "");

    let mut follower = chandler()
        .args(["logs", "-f", "--level", "warn", "--dir", &state])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let file = Path::new(&state).join("logs/chandler.later.jsonl");
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    let line = |level: &str, message: &str| {
        format!(
            "{{\"timestamp\":\"2026-03-01T12:00:00Z\",\"level\":\"{level}\",\"message\":\"{message}\"}}\n"
        )
    };
    writeln!(file, "{}{}\u{1b}[2J", line("INFO", "fine"), line("WARN", "careful")).unwrap();
    // A busy machine may have been warned about before.
    let careful = lines.by_ref().map(Result::unwrap).find(|line| line.contains(" WARN careful"));
    assert!(careful.is_some());
    assert_eq!(lines.next().unwrap().unwrap(), "not a log line: \\u{1b}[2J");
    let pid = rustix::process::Pid::from_raw(follower.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

#[test]
fn colours_are_given_and_taken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    put(&file, "{\"prompt\": \"p\", \"completion\": \"c\"}\n");
    let coloured = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = chandler();
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        let output = command.envs(variables.iter().copied()).args(args).output().unwrap();
        [output.stdout, output.stderr].map(|bytes| bytes.contains(&0x1b))
    };
    let name = model("qwen3");
    let preview = ["data", "preview", text_of(&file), "--model", &name];
    let wrong = ["status", "--dir", "/nowhere"];
    let forced = [("CLICOLOR_FORCE", "1")];
    assert_eq!(coloured(&[], &preview), [false, false]);
    assert_eq!(coloured(&forced, &preview), [true, false]);
    assert_eq!(coloured(&forced, &wrong), [false, true]);
    assert_eq!(coloured(&forced, &["status", "--flag"]), [false, true], "clap's own messages");
    assert_eq!(coloured(&forced, &["--help"]), [true, false]);
    let both = [("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")];
    for args in [&preview[..], &wrong, &["status", "--flag"], &["--help"]] {
        assert_eq!(coloured(&both, args), [false, false], "{args:?}");
    }
    let json = [&preview[..], &["--json"]].concat();
    assert_eq!(coloured(&forced, &json), [false, false]);
}

#[test]
fn the_whole_screen_is_taken_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let refusal = fails(2, &["status", "--watch", "--dir", &state]);
    assert!(refusal.contains("chandler status --json"), "{refusal}");
    let refused = run(&["status", "--watch", "--json", "--dir", &state]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("\"hint\":"));
    // util-linux's script gives a command a terminal of its own.
    let on_a_terminal = |before: &str, keys: &[u8]| {
        let binary = env!("CARGO_BIN_EXE_chandler");
        let command =
            format!("stty cols 80 rows 24; {before} {binary} status --watch --dir {state}");
        let mut typed = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        // Held open: at its end `script` types Ctrl-D.
        let mut keyboard = typed.stdin.take()?;
        keyboard.write_all(keys).ok()?;
        let output = typed.wait_with_output().ok()?;
        drop(keyboard);
        Some((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    for (before, keys, code) in [("", b"?xq", 0), ("timeout --foreground -s TERM 2", b"   ", 124)] {
        let Some((found, shown)) = on_a_terminal(before, keys) else {
            return skipped("there is no `script`");
        };
        assert_eq!(found, Some(code), "{shown}");
        for part in ["\u{1b}[?1049h", "not running", "\u{1b}[?1049l", "\u{1b}[?25h"] {
            assert!(shown.contains(part), "{part:?} in {shown:?}");
        }
    }
}
