//! The daemon as a process: a small model learns while somebody looks on, and the lock file goes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use chandler_durable::RealFs;
use chandler_model::{CausalLm, ModelConfig, write_model};
use serde_json::{Value, json};

/// Longer than anything here takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);
const STEPS: u64 = 12;

struct Daemon {
    process: Child,
    state: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended, as it was to.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn chandler(state: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chandler"))
        .args(arguments)
        .arg("--dir")
        .arg(state)
        .env_clear()
        .output()
        .unwrap()
}

/// A daemon on a state directory of its own, with a free port and a model that is small.
fn start() -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let base = folder.path().join("base");
    make_model(&base);
    assert!(chandler(&state, &["init", "--model", base.to_str().unwrap()]).status.success());
    let settings = format!(
        "data.max_length=64 train.max_steps={STEPS} train.per_device_train_batch_size=4 \
         data.eval_split=0.1 eval.eval_steps=5 eval.samples=2 eval.max_new_tokens=4 \
         daemon.settle_seconds=0.1 daemon.poll_seconds=0.05 daemon.min_free_gib=0 http.port=0"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
    command.arg("run").arg("--dir").arg(&state).env_clear().stderr(Stdio::piped());
    for setting in settings.split_whitespace() {
        command.args(["--set", setting]);
    }
    Daemon { process: command.spawn().unwrap(), state, _folder: folder }
}

fn make_model(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart");
    for entry in std::fs::read_dir(assets).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let config = ModelConfig::read(folder).unwrap();
    let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu).unwrap();
    let tensors: Vec<_> =
        model.params().iter().map(|(_, param)| (param.name.as_str(), &param.value)).collect();
    write_model(&RealFs, folder, model.config(), &tensors, DType::F32, folder).unwrap();
}

/// Asks until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Address and token of the page, as `chandler dashboard` prints them.
fn page(daemon: &Daemon) -> (String, String) {
    let url = until("the page is not there", || {
        let output = chandler(&daemon.state, &["dashboard"]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    let (base, token) = url.trim().split_once("/?token=").unwrap();
    (base.strip_prefix("http://").unwrap().to_owned(), token.to_owned())
}

/// One message of the stream.
struct Message {
    id: Option<String>,
    kind: String,
    data: Value,
}

struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open((address, token): &(String, String), seen: Option<&str>) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!(
            "GET /api/stream HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
        );
        if let Some(seen) = seen {
            write!(request, "Last-Event-ID: {seen}\r\n").unwrap();
        }
        (&stream).write_all(format!("{request}\r\n").as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    /// The next message; lines that frame the body are passed over.
    fn next(&mut self) -> Message {
        let (mut id, mut kind) = (None, String::new());
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            let line = line.trim_end();
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix("event: ") {
                text.clone_into(&mut kind);
            } else if let Some(text) = line.strip_prefix("data: ") {
                return Message { id, kind, data: serde_json::from_str(text).unwrap() };
            }
        }
    }

    /// Everything up to the event that says that a job is done.
    fn until_done(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.next();
            let is_last = message.kind == "event" && message.data["kind"] == "done";
            messages.push(message);
            if is_last {
                return messages;
            }
        }
    }
}

fn steps(messages: &[Message]) -> Vec<u64> {
    let steps = messages.iter().filter(|message| message.kind == "step");
    steps.map(|message| message.data["step"].as_u64().unwrap()).collect()
}

fn post((address, token): &(String, String), path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ended(daemon: &mut Daemon) -> (Option<i32>, String) {
    let status = until("it does not end", || daemon.process.try_wait().unwrap());
    let mut said = String::new();
    daemon.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code(), said)
}

#[test]
fn a_run_is_followed_from_its_first_step_to_its_last_and_from_any_between() {
    let mut daemon = start();
    let page = page(&daemon);
    let mut stream = Stream::open(&page, None);
    assert_eq!(stream.next().kind, "hello");
    let lines: String = (0..40)
        .map(|n| format!("{}\n", json!({ "prompt": format!("two {n}"), "completion": "zwei" })))
        .collect();
    let file = daemon.state.join("../lesson.jsonl");
    chandler_durable::write(&file, lines.as_bytes()).unwrap();
    let added = chandler(&daemon.state, &["add", file.to_str().unwrap()]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));

    let messages = stream.until_done();
    assert_eq!(steps(&messages), (1..=STEPS).collect::<Vec<_>>());
    let of = |kind: &'static str| messages.iter().filter(move |message| message.kind == kind);
    let evals: Vec<_> = of("eval").map(|message| message.data["step"].clone()).collect();
    assert_eq!(evals, [0, 5, 10, STEPS].map(Value::from));
    // Looked at now and then, and so short a run may be over by the next look.
    assert!(of("queue").count() > 0, "the queue changed");
    assert!(of("memory").any(|message| message.data["ledger"]["total"].is_u64()));
    let kinds: Vec<_> = messages.iter().map(|message| message.kind.as_str()).collect();
    assert!(kinds.contains(&"run") && kinds.contains(&"event"), "{kinds:?}");

    // Who was cut off after the sixth step goes on with the seventh.
    let sixth = messages.iter().find(|m| m.kind == "step" && m.data["step"] == 6).unwrap();
    let mut stream = Stream::open(&page, sixth.id.as_deref());
    assert_eq!(steps(&stream.until_done()), (7..=STEPS).collect::<Vec<_>>());

    let answer = post(&page, "/api/stop");
    assert!(answer.contains("the daemon ends after the step"), "{answer}");
    let (code, said) = ended(&mut daemon);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_daemon_whose_lock_file_goes_ends_rather_than_be_one_of_two() {
    let mut daemon = start();
    page(&daemon);
    std::fs::remove_file(daemon.state.join("lock")).unwrap();
    let (code, said) = ended(&mut daemon);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("error: this daemon has lost its state directory"), "{said}");
    assert!(said.contains("because: ") && said.contains("the file was removed"), "{said}");
    assert!(said.contains("hint: leave "), "{said}");
}
