//! The daemon answers while it works on no job, and training has its memory.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::client::{Place, long_question, patient_model, question, until};
use crate::support::{chandler, goldens, ok, run, text_of};

struct Daemon {
    process: Child,
    place: Place,
    state: String,
    _folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A daemon that needs some seconds for a job.
fn start(more: &[&str]) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", text_of(&patient_model(folder.path()))]);
    let mut command = chandler();
    command.args(["run", "--dir", &state]).stdout(Stdio::null()).stderr(Stdio::null());
    for setting in [
        "http.port=0",
        "daemon.restart=false",
        "daemon.settle_seconds=0",
        "daemon.poll_seconds=0.05",
        "daemon.min_free_gib=0",
        "data.max_length=160",
        "train.max_steps=60",
        "train.per_device_train_batch_size=8",
        "eval.eval_steps=0",
    ]
    .iter()
    .chain(more)
    {
        command.args(["--set", setting]);
    }
    let process = command.spawn().unwrap();
    let mut url = String::new();
    until("there is no page", || {
        let printed = run(&["dashboard", "--dir", &state]);
        String::from_utf8_lossy(&printed.stdout).trim().clone_into(&mut url);
        printed.status.success()
    });
    let (address, token) = url.strip_prefix("http://").unwrap().split_once("/?token=").unwrap();
    let place = Place { address: address.to_owned(), token: token.to_owned() };
    Daemon { process, place, state, _folder: folder }
}

impl Daemon {
    fn add(&self) {
        ok(&["add", "--dir", &self.state, text_of(&goldens().join("data/chat.jsonl"))]);
    }

    fn status(&self) -> Value {
        self.place.get("/api/status").body
    }

    fn held(&self, category: &str) -> u64 {
        let status = self.status();
        let lines = status["daemon"]["memory"]["ledger"]["categories"].as_array().unwrap().clone();
        let line = lines.iter().find(|line| line["category"] == category);
        line.map_or(0, |line| line["bytes"].as_u64().unwrap())
    }

    fn log(&self) -> String {
        let logs = std::fs::read_dir(Path::new(&self.state).join("logs")).unwrap();
        logs.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }
}

#[test]
fn it_answers_between_jobs_and_trains_with_all_its_memory() {
    let daemon = start(&["serve.grace_seconds=0"]);
    assert_eq!(daemon.held("weights"), 0, "nothing is loaded before somebody asks");
    let hello = question("Hello", json!({ "max_tokens": 4, "temperature": 0 }));
    let first = daemon.place.chat(&hello);
    assert_eq!((first.code, &first.body["model"]), (200, &json!("model")), "{first:?}");
    assert!(daemon.held("weights") > 0 && daemon.held("kv_cache") == 0);

    // An answer that goes on is cut off, and nothing of it stands in the run's way.
    ok(&["pause", "--dir", &daemon.state]);
    daemon.add();
    let mut chunks = daemon.place.stream(&long_question());
    assert!(chunks.next().is_some());
    assert_eq!(daemon.place.ask("POST /api/resume", Some("{}")).code, 200);
    let rest: Vec<String> = chunks.collect();
    let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_busy", "{last}");
    let busy = daemon.place.chat(&hello);
    assert_eq!((busy.code, &busy.body["error"]["type"]), (503, &json!("server_busy")), "{busy:?}");
    assert!(busy.head.contains("retry-after: "), "{}", busy.head);

    until("the job is not done", || daemon.status()["counts"]["done"] == 1);
    let mut newest = daemon.place.chat(&hello);
    until("it does not answer again", || {
        newest = daemon.place.chat(&hello);
        newest.code == 200
    });
    assert_eq!(newest.body["model"], "chandler", "the newest model answers");
    assert_eq!(daemon.place.get("/v1/models").body["data"][0]["id"], "chandler");
    let log = daemon.log();
    let place = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words}\n{log}"));
    assert!(place("model is let go of") < place("memory plan"), "{log}");
    assert!(!log.contains("Tell me much"), "no prompt is logged");
    ok(&["stop", "--dir", &daemon.state]);
}

#[test]
fn an_answer_that_goes_on_is_finished_within_its_grace() {
    let daemon = start(&["serve.grace_seconds=100"]);
    ok(&["pause", "--dir", &daemon.state]);
    daemon.add();
    let mut chunks = daemon.place.stream(&long_question());
    assert!(chunks.next().is_some());
    assert_eq!(daemon.place.ask("POST /api/resume", Some("{}")).code, 200);
    until("no job is begun", || daemon.status()["counts"]["running"] == 1);
    assert_eq!(chunks.last().as_deref(), Some("[DONE]"));
    until("the job is not done", || daemon.status()["counts"]["done"] == 1);
}

#[test]
fn a_model_that_nobody_asks_is_let_go_of() {
    let daemon = start(&["serve.idle_seconds=0.2"]);
    let hello = question("Hello", json!({ "max_tokens": 4 }));
    assert_eq!(daemon.place.chat(&hello).code, 200);
    until("the model stays", || daemon.held("weights") == 0);
    assert_eq!(daemon.place.chat(&hello).code, 200, "it is loaded again");
    ok(&["pause", "--dir", &daemon.state]);
    daemon.add();
    assert_eq!(daemon.place.chat(&hello).code, 200, "a pause between jobs is no job");
}

#[test]
fn where_it_is_turned_off_nothing_is_there() {
    let daemon = start(&["serve.enabled=false"]);
    assert_eq!(daemon.place.get("/v1/models").code, 404);
    let pid = daemon.process.id().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().unwrap();
}
