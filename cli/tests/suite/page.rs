//! What the page reads that only a whole daemon can tell: previews by its worker, plans, logs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{chandler, goldens, model, ok, put, run, text_of};

const QUICK: [&str; 12] = [
    "--set",
    "http.port=0",
    "--set",
    "train.max_steps=2",
    "--set",
    "train.per_device_train_batch_size=2",
    "--set",
    "eval.eval_steps=0",
    "--set",
    "data.max_length=160",
    "--set",
    "daemon.min_free_gib=0",
];

/// A daemon with a page, and who may ask it.
struct Page {
    daemon: Child,
    state: String,
    address: String,
    token: String,
}

impl Page {
    fn open(state: &str) -> Self {
        let mut command = chandler();
        command.args(["run", "--dir", state]).args(QUICK);
        let daemon = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        let address = loop {
            assert!(begun.elapsed() < Duration::from_secs(60));
            let status = run(&["status", "--dir", state, "--json"]).stdout;
            let status: Value = serde_json::from_slice(&status).unwrap_or_default();
            if let Some(url) = status["daemon"]["http"].as_str() {
                break url.trim_start_matches("http://").to_owned();
            }
            sleep(Duration::from_millis(20));
        };
        let token = std::fs::read_to_string(Path::new(state).join("token")).unwrap();
        Self { daemon, state: state.to_owned(), address, token: token.trim().to_owned() }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (address, token) = (&self.address, &self.token);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn json(&self, path: &str) -> Value {
        let (code, body) = self.get(path);
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        run(&["stop", "--dir", &self.state]);
        let _ = self.daemon.wait();
    }
}

#[test]
fn a_file_is_previewed_by_a_worker_with_its_trained_tokens_and_bad_lines() {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    ok(&["pause", "--dir", &state]);
    let (good, bad) = (folder.path().join("good.jsonl"), folder.path().join("bad.jsonl"));
    let long = "x".repeat(40_000);
    put(
        &good,
        format!(
            "{}\n{}\n",
            json!({ "prompt": "2 + 2 =", "completion": " 4" }),
            json!({ "prompt": "Say\u{1b}[2J", "completion": long })
        ),
    );
    put(&bad, "{\"prompt\": \"a\", \"completion\": \"b\"}\nno JSON\n");
    for file in [&good, &bad] {
        ok(&["add", "--dir", &state, text_of(file)]);
    }
    let page = Page::open(&state);
    let preview = page.json("/api/jobs/1/preview");
    let rows = preview["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &preview["problem"]), (2, &Value::Null), "{preview}");
    assert_eq!(rows[0]["pieces"], json!([["2 + 2 =", false], [" 4<|im_end|>", true]]));
    assert_eq!((&rows[1]["cut"], &rows[1]["tokens"]), (&json!(true), &json!(160)));
    assert_eq!(page.json("/api/jobs/1/preview?rows=1")["rows"].as_array().unwrap().len(), 1);
    let preview = page.json("/api/jobs/2/preview");
    assert_eq!(preview["rows"].as_array().unwrap().len(), 1);
    assert_eq!(preview["problem"]["bad_lines"][0]["line"], 2, "{preview}");
    for path in ["/api/jobs/9/preview", "/api/plan.svg", "/api/plan/table"] {
        assert_eq!(page.get(path).0, 404, "{path}");
    }
    assert_eq!(page.get("/api/jobs/1/preview?rows=x").0, 400);
    let logs = page.json("/api/logs?level=info&lines=50");
    let is_page =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("page at "));
    assert!(logs["lines"].as_array().unwrap().iter().any(is_page), "{logs}");
    assert_eq!(page.json("/api/logs?level=error"), json!({ "lines": [], "more": false }));
    assert_eq!(page.get("/api/logs?level=loud").0, 400);
}

#[test]
fn the_plan_of_a_run_has_a_table_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let state = text_of(&folder.path().join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    let mut command = chandler();
    command.args(["run", "--once", "--dir", &state]).args(QUICK);
    assert!(command.output().unwrap().status.success());
    let page = Page::open(&state);
    let planned = page.json("/api/plan");
    let answer = page.json("/api/plan/table?run=1");
    assert_eq!(
        (&answer["run_id"], &answer["table"]["device"]),
        (&json!(1), &planned["plan"]["budget"])
    );
    let rows = answer["table"]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "{answer}");
    assert!(rows.iter().all(|row| row["best"]["train_peak"].as_u64() <= row["budget"].as_u64()));
    for (query, ink) in [("", "#000000"), ("?theme=dark&run=1", "#e4e6e9")] {
        let (code, picture) = page.get(&format!("/api/plan.svg{query}"));
        assert!(code == 200 && picture.starts_with("<svg ") && picture.contains(ink), "{picture}");
        assert!(picture.contains("balanced 75 %") && picture.contains("weights"), "{picture}");
    }
    assert_eq!(page.get("/api/plan.svg?theme=sepia").0, 400);
    assert_eq!(page.get("/api/plan.svg?run=7").0, 404);
}
