//! Every kind of alert, from a run to a receiver; news of memory; a receiver over https.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::notify::{State, wait_for, webhook};
use crate::receiver::Receiver;
use crate::support::{model, ok, put, run, text_of};

/// Puts a file of so many equal rows and one that is like none of them into the inbox.
fn put_rows(state: &State, equal: usize, odd: &str) {
    let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    let file = state.folder.path().join("rows.jsonl");
    put(&file, row("one two three four five six seven eight").repeat(equal) + &row(odd));
    ok(&["add", "--dir", &state.dir, text_of(&file)]);
}

/// The details of an alert, as the receiver got them, which the page and `status` have, too.
fn told(state: &State, receiver: &Receiver, kind: &str) -> Value {
    let details = wait_for(kind, || {
        let heard = receiver.heard().into_iter().map(|heard| heard.json());
        heard.map(|body| body["details"].clone()).find(|details| details["alert"] == kind)
    });
    let status = state.status();
    let alerts = status["alerts"].as_array().unwrap();
    assert!(alerts.iter().any(|alert| alert["details"] == details), "{alerts:?}");
    assert!(state.said().contains("alert: "), "{}", state.said());
    details
}

fn alerts_to(receiver: &Receiver) -> String {
    webhook(&receiver.url, "events = [\"alert\"]")
}

#[test]
fn a_row_like_no_other_is_a_loss_spike() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let state = State::new(&alerts_to(&receiver));
    put_rows(&state, 40, "zyx wvu tsr qpo nml kji hgf edc");
    let quick = ["train.max_steps=41", "train.per_device_train_batch_size=1"];
    let quick = [&quick[..], &["data.shuffle=false", "train.learning_rate=0.01"]].concat();
    let set: Vec<&str> = quick.iter().flat_map(|set| ["--set", set]).collect();
    let daemon = state.start(&set);
    let details = told(&state, &receiver, "loss_spike");
    assert_eq!((&details["metric"], &details["step"]), (&"loss".into(), &41.into()));
    assert!(details["value"].as_f64().unwrap() > 3.0 * details["expected"].as_f64().unwrap());
    daemon.stop();
}

#[test]
fn a_run_without_a_daemon_tells_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("rows.jsonl"), folder.path().join("out"));
    let row = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    put(&data, row("one two three four").repeat(30) + &row("zyx wvu tsr qpo nml kji hgf edc"));
    let (name, data, out) = (model("qwen3"), text_of(&data), text_of(&out));
    let args = ["train", "--model", &name, "--data", data, "--output", out];
    let set = ["per_device_train_batch_size=1", "learning_rate=0.01", "num_train_epochs=1"];
    let set = set.map(|set| format!("train.{set}"));
    let others = ["data.shuffle=false", "eval.eval_steps=0"];
    let set = set.iter().map(String::as_str).chain(others).flat_map(|set| ["--set", set]);
    let output = run(&args.into_iter().chain(set).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("alert: the loss is "), "{said}");
}

#[test]
fn an_evaluation_that_gets_worse_is_told_by_the_set_and_its_metric() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let state = State::new(&alerts_to(&receiver));
    let set = Path::new(&state.dir).join("evals/far.jsonl");
    put(&set, "{\"prompt\": \"zyx wvu\", \"completion\": \" tsr qpo nml\"}\n");
    put_rows(&state, 40, "nine");
    // It learns one row by heart, and forgets the others.
    let quick = ["train.max_steps=40", "eval.eval_steps=5", "train.learning_rate=0.02"];
    let quick = [&quick[..], &["eval.samples=1", "eval.max_new_tokens=2"]].concat();
    let set: Vec<&str> = quick.iter().flat_map(|set| ["--set", set]).collect();
    let daemon = state.start(&set);
    let details = told(&state, &receiver, "eval_regression");
    assert_eq!(details["metric"], "far/loss", "{details}");
    let [best, value] = ["expected", "value"].map(|key| details[key].as_f64().unwrap());
    assert!(value > 1.1 * best, "{details}");
    daemon.stop();
}

#[test]
fn a_machine_that_slows_down_is_told() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let state = State::new(&alerts_to(&receiver));
    state.add("one.jsonl");
    let long = ["train.max_steps=1000000", "train.save_steps=0"];
    let long = [&long[..], &["alerts.throughput_drop=0.4", "alerts.throughput_seconds=1"]].concat();
    let set: Vec<&str> = long.iter().flat_map(|set| ["--set", set]).collect();
    let daemon = state.start(&set);
    let step = || state.status()["daemon"]["current"]["progress"]["step"].as_u64();
    wait_for("a hundred steps", || step().filter(|step| *step > 100));
    let pid = Pid::from_child(&daemon.0);
    let is_told = || receiver.heard().iter().any(|heard| heard.is("alert"));
    wait_for("the alert", || {
        // It works a tenth of the time, as beside somebody who takes the rest.
        for _ in 0..20 {
            kill_process(pid, Signal::STOP).unwrap();
            sleep(Duration::from_millis(45));
            kill_process(pid, Signal::CONT).unwrap();
            sleep(Duration::from_millis(5));
        }
        is_told().then_some(())
    });
    let details = told(&state, &receiver, "throughput_drop");
    assert_eq!(details["metric"], "tokens_per_s");
    let [usual, value] = ["expected", "value"].map(|key| details[key].as_f64().unwrap());
    assert!(value < 0.6 * usual, "{details}");
    daemon.stop();
}

#[test]
fn a_run_that_stands_still_is_told_although_it_says_nothing() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let state = State::new(&alerts_to(&receiver));
    state.add("one.jsonl");
    let long = ["train.max_steps=1000000", "train.save_steps=0", "alerts.stuck_seconds=2"];
    let set: Vec<&str> = long.iter().flat_map(|set| ["--set", set]).collect();
    let daemon = state.start(&set);
    let step = || state.status()["daemon"]["current"]["progress"]["step"].as_u64();
    wait_for("some steps", || step().filter(|step| *step > 20));
    // Whoever holds the database keeps the run from recording a step.
    let other = Connection::open(Path::new(&state.dir).join("chandler.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    sleep(Duration::from_secs(5));
    other.execute_batch("ROLLBACK").unwrap();
    let details = told(&state, &receiver, "stuck");
    assert_eq!(details["metric"], "seconds");
    assert!(details["value"].as_f64().unwrap() >= 2.0, "{details}");
    daemon.stop();
}

#[test]
fn what_is_done_for_want_of_memory_is_news() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let state = State::new(&webhook(&receiver.url, "events = [\"memory\"]"));
    state.add("one.jsonl");
    let tight =
        ["memory.limit=16MiB", "train.per_device_train_batch_size=8", "data.max_length=128"];
    let set: Vec<&str> = tight.iter().flat_map(|set| ["--set", set]).collect();
    let daemon = state.start(&set);
    let body = receiver.wait_for("memory", 200).json();
    let message = body["message"].as_str().unwrap();
    assert!(message.starts_with("to fit into memory, "), "{body}");
    assert!(body["job"] == 1 && body["run"] == 1, "{body}");
    daemon.stop();
}

#[test]
fn a_receiver_over_https_is_told_where_its_certificate_is_trusted() {
    let receiver = Receiver::start_tls();
    let state = State::new(&webhook(&receiver.url, ""));
    let authority = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/tls/authority.pem");
    let test = |trusted: bool| {
        let mut command = state.command(&["notify", "test", "--json"]);
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        if trusted {
            command.env("SSL_CERT_FILE", &authority);
        }
        let output = command.stdout(Stdio::piped()).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (is_taken, text) = test(false);
    assert!(!is_taken && text.to_lowercase().contains("certificate"), "{text}");
    assert!(receiver.heard().is_empty());
    let (is_taken, text) = test(true);
    assert!(is_taken, "{text}");
    let heard = receiver.heard();
    assert!(heard[0].is("test") && heard[0].header("x-chandler-signature-256").len() > 64);
}
