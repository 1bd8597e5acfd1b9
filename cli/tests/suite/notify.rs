//! Alerts, webhooks, the desktop, a command for an empty queue, and what a service manager hears.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::receiver::{HIDDEN_PATH, Receiver};
use crate::support::{chandler, goldens, model, ok, put, text_of};

const PATIENCE: Duration = Duration::from_secs(120);
const SECRET: &str = "a secret of the test";

/// Calls `look` until it finds something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} never came");
        sleep(Duration::from_millis(20));
    }
}

/// HMAC-SHA256 in hexadecimal; the key is shorter than a block.
fn hmac(key: &str, text: &str) -> String {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key.bytes()).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    let outer = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
    outer.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) struct State {
    pub(crate) dir: String,
    pub(crate) folder: tempfile::TempDir,
}

impl State {
    /// A state directory with `lines` added to its configuration.
    pub(crate) fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = text_of(&folder.path().join("state")).to_owned();
        ok(&["init", "--dir", &dir, "--model", &model("qwen3")]);
        let file = Path::new(&dir).join("chandler.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let quick = "
            [train]
            max_steps = 3
            per_device_train_batch_size = 2
            [eval]
            eval_steps = 0
            [data]
            max_length = 160
            [daemon]
            min_free_gib = 0.0
            settle_seconds = 0.0
            poll_seconds = 0.05
            restart = false
            [http]
            enabled = false
        ";
        // The template's own sections have nothing in them but comments and the model.
        let model = text.lines().find(|line| line.starts_with("path = ")).unwrap();
        put(&file, format!("[model]\n{model}\n{quick}\n{lines}\n"));
        Self { dir, folder }
    }

    pub(crate) fn add(&self, name: &str) {
        let file = self.folder.path().join(name);
        std::fs::copy(goldens().join("data/chat.jsonl"), &file).unwrap();
        ok(&["add", "--dir", &self.dir, text_of(&file)]);
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = chandler();
        for proxy in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NOTIFY_SOCKET"] {
            command.env_remove(proxy);
        }
        command.args(args).args(["--dir", &self.dir]).stdout(Stdio::null());
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Daemon {
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("stderr"))
            .unwrap();
        let mut command = self.command(&[&["run"], args].concat());
        Daemon(command.stderr(stderr).spawn().unwrap())
    }

    /// Everything that was said on the terminal and in the log so far.
    pub(crate) fn said(&self) -> String {
        let mut said = std::fs::read_to_string(self.folder.path().join("stderr")).unwrap();
        for entry in std::fs::read_dir(Path::new(&self.dir).join("logs")).unwrap() {
            said += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
        }
        said
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&ok(&["status", "--dir", &self.dir, "--json"])).unwrap()
    }
}

pub(crate) struct Daemon(pub(crate) Child);

impl Daemon {
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn webhook(url: &str, rest: &str) -> String {
    format!("[[notify.webhooks]]\nurl = \"{url}\"\nsecret = \"{SECRET}\"\n{rest}")
}

#[test]
fn what_happens_arrives_signed_and_once_although_the_receiver_fails_and_the_daemon_is_killed() {
    // Of the news that the job is done, the first two attempts fail; the daemon is killed after
    // the first.
    let receiver = Receiver::start(|request, _| {
        static FAILED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let fails =
            request.is("job_done") && FAILED.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2;
        if fails { (500, "") } else { (204, "") }
    });
    let state = State::new(&webhook(&receiver.url, "events = [\"job_done\", \"daemon_stopped\"]"));
    state.add("one.jsonl");
    let mut daemon = state.start(&[]);
    let failed = receiver.wait_for("job_done", 500);
    daemon.0.kill().unwrap();
    daemon.0.wait().unwrap();
    let daemon = state.start(&[]);
    let taken = receiver.wait_for("job_done", 204);
    daemon.stop();
    let daemon = state.start(&[]);
    wait_for("another life", || (state.status()["running"] == true).then_some(()));
    daemon.stop();

    let heard = receiver.heard();
    let done: Vec<_> = heard.iter().filter(|heard| heard.is("job_done")).collect();
    let answers: Vec<_> = done.iter().map(|heard| heard.answered).collect();
    assert_eq!(answers, [500, 500, 204], "and never again");
    assert_eq!(taken.header("X-Chandler-Delivery"), failed.header("X-Chandler-Delivery"));
    assert_eq!(heard.iter().filter(|heard| heard.is("daemon_stopped")).count(), 2);
    let signed = format!("sha256={}", hmac(SECRET, &taken.body));
    assert_eq!(taken.header("X-Chandler-Signature-256"), signed);
    let body = taken.json();
    assert_eq!(body["id"], taken.header("X-Chandler-Delivery"));
    assert_eq!((body["job"].as_i64(), body["run"].as_i64()), (Some(1), Some(1)));
    assert_eq!(body["message"], "was learned from");
    assert!(body["state_dir"].as_str().unwrap().ends_with("state"), "{body}");
    assert!(heard.iter().all(|heard| !heard.is("daemon_started")), "nobody wanted that");

    let shown = ok(&["config", "show", "--dir", &state.dir]);
    assert!(shown.contains("http://127.0.0.1:"), "{shown}");
    let said = state.said();
    assert!(said.contains("500 Internal Server Error"), "{said}");
    let database = std::fs::read(Path::new(&state.dir).join("chandler.db")).unwrap();
    for secret in [SECRET, HIDDEN_PATH] {
        assert!(!shown.contains(secret) && !said.contains(secret), "{secret} is told");
        let is_kept = database.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!is_kept, "{secret} is in the database");
    }
}

#[test]
fn a_receiver_that_asks_for_peace_is_left_in_peace_and_training_goes_on() {
    let receiver = Receiver::start(|_, _| (429, "Retry-After: 3600\r\n"));
    let state = State::new(&webhook(&receiver.url, ""));
    state.add("one.jsonl");
    let mut daemon = state.start(&["--once"]);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    let daemon = state.start(&[]);
    wait_for("another life", || (state.status()["running"] == true).then_some(()));
    daemon.stop();
    let heard = receiver.heard();
    assert!(heard.len() <= 2, "one in each life at most: {heard:?}");
    assert!(heard[0].is("daemon_started"));
    assert_eq!(state.status()["counts"]["done"], 1);
}

#[test]
fn a_loss_that_is_no_number_is_an_alert_in_status_and_for_webhooks() {
    let receiver = Receiver::start(|_, _| (200, ""));
    let slack = Receiver::start(|_, _| (200, ""));
    let hooks = webhook(&receiver.url, "events = [\"alert\", \"job_failed\"]\n")
        + &webhook(&slack.url, "events = [\"alert\"]\nformat = \"slack\"");
    let state = State::new(&hooks);
    state.add("one.jsonl");
    let wild = ["--set", "train.learning_rate=1e38", "--set", "train.max_grad_norm=0"];
    let mut daemon =
        state.start(&[&["--once", "--set", "daemon.max_attempts=1"], &wild[..]].concat());
    assert_eq!(daemon.0.wait().unwrap().code(), Some(4));
    let body = receiver.wait_for("alert", 200).json();
    assert_eq!(body["details"]["alert"], "not_finite");
    assert!(body["details"]["value"].is_null() && body["details"]["step"].is_u64(), "{body}");
    receiver.wait_for("job_failed", 200);
    let text = slack.heard()[0].json()["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with("chandler: alert on ") && text.contains("NaN or infinite"), "{text}");
    let status = state.status();
    assert_eq!(status["alerts"][0]["details"]["alert"], "not_finite");
    let text = ok(&["status", "--dir", &state.dir]);
    assert!(text.contains("\nalerts ") && text.contains("is NaN or infinite"), "{text}");
}

#[test]
fn a_test_says_what_came_back_and_follows_nobody() {
    let good = Receiver::start(|_, _| (200, ""));
    let bad = Receiver::start(|_, _| (302, "Location: http://127.0.0.1:9/elsewhere\r\n"));
    let state = State::new(&webhook(&good.url, "events = [\"alert\"]"));
    let output = state.command(&["notify", "test"]).stdout(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("taken, 200 OK"), "{text}");
    assert!(good.heard()[0].is("test") && !text.contains(HIDDEN_PATH));

    let both = State::new(&(webhook(&good.url, "") + &webhook(&bad.url, "")));
    let output = both.command(&["notify", "test"]).stdout(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not taken, 302 Found, and redirects are not followed"), "{text}");
    let output =
        both.command(&["notify", "test", "--json"]).stdout(Stdio::piped()).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told[0]["taken"], &told[1]["taken"]), (&true.into(), &false.into()), "{told}");
    assert!(told[0]["seconds"].is_number() && told[1]["answer"].is_string(), "{told}");
    let nobody = State::new("").command(&["notify", "test"]).output().unwrap();
    let errors = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(errors.contains("hint: ") && errors.contains("[[notify.webhooks]]"), "{errors}");
}

#[test]
fn the_desktop_shows_that_a_job_is_done() {
    let state = State::new("[notify]\ndesktop = true");
    let programs = state.folder.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let program = programs.join("notify-send");
    let shown = state.folder.path().join("shown");
    put(&program, format!("#!/bin/sh\necho \"$@\" >> '{}'\n", shown.display()));
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", programs.display());
    state.add("one.jsonl");
    let daemon = state.command(&["run"]).env("PATH", &path).stderr(Stdio::null()).spawn().unwrap();
    let daemon = Daemon(daemon);
    let text = wait_for("a notification", || {
        std::fs::read_to_string(&shown).ok().filter(|text| text.contains("job done"))
    });
    assert!(text.contains("-- chandler: job done job 1: was learned from"), "{text}");
    daemon.stop();

    // Without the program that is said once, and nothing else happens.
    std::fs::remove_file(&program).unwrap();
    for name in ["two.jsonl", "three.jsonl"] {
        state.add(name);
    }
    let stderr = std::fs::File::create(state.folder.path().join("stderr")).unwrap();
    let mut command = state.command(&["run", "--once"]);
    let status = command.env("PATH", text_of(&programs)).stderr(stderr).status().unwrap();
    assert!(status.success());
    let said = std::fs::read_to_string(state.folder.path().join("stderr")).unwrap();
    assert_eq!(said.matches("there is no program notify-send").count(), 1, "{said}");
}

#[test]
fn a_command_fills_the_inbox_when_the_queue_is_empty() {
    let state = State::new("");
    let data = goldens().join("data/chat.jsonl");
    // The second time there is nothing left to make.
    let script = format!(
        "echo made for $CHANDLER_JOBS_DONE done; echo x >> \"$CHANDLER_DIR/ran\"; \
         test -e \"$CHANDLER_DIR/done/made.jsonl\" || cp '{}' \"$CHANDLER_DIR/inbox/made.jsonl\"",
        data.display()
    );
    let quoted = serde_json::json!(["sh", "-c", script]);
    let when_idle = format!("daemon.when_idle={quoted}");
    let daemon = state.start(&["--set", &when_idle, "--set", "daemon.when_idle_seconds=0.2"]);
    let ran = || std::fs::read_to_string(Path::new(&state.dir).join("ran")).unwrap_or_default();
    wait_for("the second run", || (ran() == "x\nx\n").then_some(()));
    assert_eq!(state.status()["counts"]["done"], 1);
    sleep(Duration::from_secs(1));
    assert_eq!(ran(), "x\nx\n", "nothing was worked on since");
    daemon.stop();
    let said = state.said();
    assert!(said.contains("when_idle: made for 0 done"), "{said}");
    assert!(said.contains("when_idle: made for 1 done"), "{said}");

    let fails = "daemon.when_idle=[\"sh\", \"-c\", \"exit 9\"]";
    let daemon = state.start(&["--set", fails, "--set", "daemon.when_idle_seconds=0.2"]);
    let event = wait_for("the failure", || {
        let status = state.status();
        let events = status["events"].as_array().unwrap().clone();
        events.into_iter().find(|event| event["kind"] == "when_idle_failed")
    });
    assert!(event["message"].as_str().unwrap().contains("ended with code 9"), "{event}");
    daemon.stop();
}

/// What a service manager hears until `last`.
fn told(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while !told.iter().any(|line: &String| line == last) {
        let length = socket.recv(&mut buffer).unwrap_or_else(|_| panic!("{last}: {told:?}"));
        told.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    told
}

#[test]
fn a_service_manager_hears_when_it_is_ready_alive_and_ending() {
    for restart in ["daemon.restart=true", "daemon.restart=false"] {
        let state = State::new("");
        let path = state.folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = state.command(&["run", "--set", restart]);
        let process = command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(process);
        told(&socket, "READY=1");
        told(&socket, "WATCHDOG=1");
        told(&socket, "STATUS=waiting for files");
        told(&socket, "WATCHDOG=1");
        state.add("one.jsonl");
        wait_for("the end of the job", || {
            told(&socket, "WATCHDOG=1");
            (state.status()["counts"]["done"] == 1).then_some(())
        });
        kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
        told(&socket, "STOPPING=1");
        daemon.stop_was_asked();
    }
}

impl Daemon {
    fn stop_was_asked(mut self) {
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_unit_is_printed_and_nothing_is_done() {
    let state = State::new("");
    let home = state.folder.path().join("home");
    let mut command = state.command(&["service", "install", "--dry-run"]);
    command.env("HOME", &home).env_remove("XDG_CONFIG_HOME").stdout(Stdio::piped());
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("Type=notify") && text.contains("KillMode=mixed"), "{text}");
    assert!(text.contains(&format!("run --dir {}", state.dir)), "{text}");
    assert!(text.contains("systemctl --user enable --now chandler"), "{text}");
    assert!(!home.exists());
}
