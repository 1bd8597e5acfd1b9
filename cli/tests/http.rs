//! The HTTP server over a real socket: each of its guards and limits.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chandler_cli::config::{Config, HttpConfig};
use chandler_cli::control::{LiveStatus, Request, Response};
use chandler_cli::http::{HttpServer, Limits, read_token};
use chandler_cli::state_dir::StateDir;
use chandler_cli::store::{EvalRow, EvalSample, ScoreRow, StepRow, Store};
use serde_json::{Value, json};

#[path = "counterparts/python.rs"]
mod python;

use python::python_with;

/// The samples of a page as Prometheus' own parser has them; `None` without a Python that has it.
fn as_prometheus_reads(page: &str) -> Option<Vec<String>> {
    let python = python_with("prometheus_client")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counterparts/prometheus.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

struct Server {
    _folder: tempfile::TempDir,
    state: StateDir,
    store: Store,
    token: String,
    server: HttpServer,
}

/// A daemon that says what it is asked and does nothing.
fn answer(request: Request) -> Response {
    match request {
        Request::Status => Response::Status(Box::new(status())),
        Request::Skip { job: None } => {
            Response::Refused { error: "it is idle".into(), hint: Some("wait".into()) }
        }
        other => Response::Done { message: format!("{other:?}") },
    }
}

fn status() -> LiveStatus {
    serde_json::from_value(json!({
        "pid": 1, "version": "0", "started_at": "2026-01-01T00:00:00Z",
        "paused": false, "stopping": false,
        "current": {
            "job_id": 4, "file_name": "a.jsonl", "run_id": 1, "phase": "training",
            "progress": {
                "step": 7, "total_steps": 9, "loss": 1.25, "lr": 1e-3, "tokens_per_s": null,
                "eta_s": 3.5, "memory_bytes": null,
            },
        },
        "memory": {
            "ledger": {
                "categories": [{ "category": "weights", "bytes": 4096, "peak": 4096 }],
                "total": 4096, "peak_total": 4096, "phases": [],
            },
            "heap": 5, "heap_peak": null, "limit": null,
            "host": {
                "rss": null, "peak_rss": null, "total": null, "available": null,
                "cgroup_limit": null, "cgroup_used": null,
            },
            "gpus": null,
        },
    }))
    .unwrap()
}

fn listening_on(port: u64) -> Config {
    Config { http: HttpConfig { port, ..HttpConfig::default() }, ..Config::default() }
}

fn serve(limits: Limits) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::choose(Some(Path::new("state")), folder.path());
    state.init("").unwrap();
    let store = Store::open(&state.database()).unwrap();
    let config = listening_on(0);
    let server = HttpServer::start_within(limits, &state, &config, Arc::new(answer), None).unwrap();
    let token = read_token(&state.token_file()).unwrap().as_str().to_owned();
    Server { _folder: folder, state, store, token, server }
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// The whole answer to a request that closes the connection.
    fn send(&self, raw: &str) -> String {
        let mut stream = self.connect();
        // A request that is refused early may not be read to its end.
        let _ = stream.write_all(raw.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn request(&self, line: &str, headers: &[(&str, &str)], body: &str) -> String {
        let mut raw = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            write!(raw, "Host: {}\r\n", self.server.address()).unwrap();
        }
        for (name, value) in headers {
            write!(raw, "{name}: {value}\r\n").unwrap();
        }
        if line.starts_with("POST") {
            write!(raw, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.send(&format!("{raw}\r\n{body}"))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.request(&format!("GET {path}"), &[("Authorization", &self.bearer())], "");
        (code(&answer), json_of(&answer))
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let headers = [("Authorization", &*self.bearer()), ("Content-Type", "application/json")];
        let answer = self.request(&format!("POST {path}"), &headers, body);
        (code(&answer), json_of(&answer))
    }
}

fn code(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{answer}"))
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn json_of(answer: &str) -> Value {
    serde_json::from_str(body_of(answer)).unwrap_or_else(|_| panic!("{answer}"))
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

#[test]
fn who_comes_without_the_token_or_by_another_name_is_turned_away() {
    let server = serve(Limits::default());
    let bearer = server.bearer();
    assert_eq!(server.get("/api/status").0, 200);
    let health = server.request("GET /healthz", &[], "");
    assert_eq!((code(&health), body_of(&health)), (200, "ok\n"));
    for path in ["/api/status", "/metrics", "/api/stream", "/app/main.js", "/nothing"] {
        for wrong in [None, Some("Bearer "), Some("Bearer 00"), Some("Basic x")] {
            let headers: Vec<_> = wrong.map(|value| ("Authorization", value)).into_iter().collect();
            let answer = server.request(&format!("GET {path}"), &headers, "");
            assert_eq!(code(&answer), 401, "{path} {wrong:?}");
            assert!(body_of(&answer).contains("chandler dashboard"));
            assert_eq!(header(&answer, "www-authenticate"), Some("Bearer"));
        }
    }
    let rebound = [("Host", "evil.example:7917"), ("Authorization", &*bearer)];
    let answer = server.request("GET /api/status", &rebound, "");
    assert_eq!(code(&answer), 421);
    assert!(body_of(&answer).contains("http.hosts"), "{answer}");
    assert_eq!(code(&server.send("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")), 421);
    let foreign = [
        ("Authorization", &*bearer),
        ("Content-Type", "application/json"),
        ("Origin", "http://evil.example"),
    ];
    assert_eq!(code(&server.request("POST /api/stop", &foreign, "{}")), 403);
}

#[test]
fn the_address_with_the_token_signs_a_browser_in() {
    let server = serve(Limits::default());
    let page = server.request("GET /", &[], "");
    assert_eq!(code(&page), 401);
    assert!(body_of(&page).contains("<pre>chandler dashboard</pre>"));
    let answer = server.request(&format!("GET /?token={}", server.token), &[], "");
    assert_eq!((code(&answer), header(&answer, "location")), (303, Some("/")));
    assert_eq!(header(&answer, "cache-control"), Some("no-store"));
    let set = header(&answer, "set-cookie").unwrap();
    assert!(set.ends_with("; HttpOnly; SameSite=Strict; Path=/"), "{set}");
    let cookie = set.split(';').next().unwrap();
    let page = server.request("GET /", &[("Cookie", cookie)], "");
    assert_eq!(code(&page), 200);
    let policy = header(&page, "content-security-policy").unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(header(&page, "x-content-type-options"), Some("nosniff"));
    assert_eq!(header(&page, "referrer-policy"), Some("no-referrer"));

    let address = server.server.address().to_string();
    let ours = format!("http://{address}");
    let json = ("Content-Type", "application/json");
    for (more, expected) in [
        (vec![json], 403),
        (vec![json, ("Origin", &*ours)], 200),
        (vec![json, ("Sec-Fetch-Site", "same-origin")], 200),
        (vec![json, ("Origin", &*ours), ("Sec-Fetch-Site", "cross-site")], 403),
        (vec![("Content-Type", "text/plain"), ("Origin", &*ours)], 415),
        (vec![("Origin", &*ours)], 415),
    ] {
        let headers: Vec<_> = [("Cookie", cookie)].into_iter().chain(more).collect();
        let answer = server.request("POST /api/pause", &headers, "{}");
        assert_eq!(code(&answer), expected, "{headers:?}: {answer}");
    }
}

#[test]
fn what_is_too_large_too_slow_or_too_much_is_cut_off() {
    let patience = Duration::from_millis(300);
    let limits = Limits {
        connections: 4,
        header_patience: patience,
        answer_patience: patience,
        ..Limits::default()
    };
    let server = serve(limits);
    let bearer = server.bearer();
    let long = "x".repeat(20 * 1024);
    let answer = server.request("GET /healthz", &[("X-Long", &long)], "");
    assert_eq!(code(&answer), 431);
    let many: Vec<_> = (0..100).map(|_| ("X-Many", "y")).collect();
    assert_eq!(code(&server.request("GET /healthz", &many, "")), 431);
    let (status, error) = server.post("/api/skip", &format!("{{\"job\":\"{long}\"}}"));
    assert_eq!(status, 413, "{error}");

    let begun = Instant::now();
    for beginning in ["", "GET /healthz HTT", "GET /healthz HTTP/1.1\r\nHost: loc"] {
        let answer = server.send(beginning);
        assert!(answer.is_empty() || code(&answer) == 408, "{answer}");
    }
    let slow = format!(
        "POST /api/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{{"
    );
    assert_eq!(code(&server.send(&slow)), 408);
    assert!(begun.elapsed() > patience, "nobody was waited for");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn there_are_only_so_many_connections() {
    let server = serve(Limits { connections: 4, ..Limits::default() });
    let idle: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    let mut answer = String::new();
    server.connect().read_to_string(&mut answer).unwrap();
    assert_eq!(code(&answer), 503);
    assert_eq!(header(&answer, "retry-after"), Some("5"));
    drop(idle);
    let begun = Instant::now();
    while !server.request("GET /healthz", &[], "").ends_with("ok\n") {
        assert!(begun.elapsed() < Duration::from_secs(20), "the places are not free again");
    }
}

#[test]
fn no_path_leads_to_a_file_of_the_machine() {
    let server = serve(Limits::default());
    let bearer = server.bearer();
    for path in [
        "/../token",
        "/../../etc/passwd",
        "/%2e%2e/token",
        "/..%2ftoken",
        "//etc/passwd",
        "/uplot/../app/main.js",
        "/assets/app/main.js",
        "/app/main.js%00",
        "/uplot/",
        "/\\..\\token",
    ] {
        let answer = server.request(&format!("GET {path}"), &[("Authorization", &bearer)], "");
        assert!(matches!(code(&answer), 400 | 404), "{path}: {answer}");
    }
    let head = [("Authorization", &*bearer)];
    let script = server.request("GET /app/main.js", &head, "");
    assert_eq!(header(&script, "content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(header(&script, "cache-control"), Some("no-cache"));
    let etag = header(&script, "etag").unwrap();
    let again = server.request("GET /app/main.js", &[head[0], ("If-None-Match", etag)], "");
    assert_eq!((code(&again), body_of(&again)), (304, ""));
    assert_eq!(code(&server.request("POST /app/main.js", &[head[0]], "")), 405);
    assert_eq!(code(&server.request("GET /api/pause", &head, "")), 405);
    assert_eq!(server.get("/api/nothing").0, 404);
}

fn step(step: u64) -> StepRow {
    serde_json::from_value(json!({
        "step": step, "loss": 1.0 / step as f64, "grad_norm": 1.0, "lr": 0.1, "num_tokens": step,
        "mean_token_accuracy": null, "tokens_per_s": 5.0, "peak_bytes": null,
        "memory": { "weights": 4096 },
    }))
    .unwrap()
}

#[test]
fn everything_that_was_written_can_be_read() {
    let mut server = serve(Limits::default());
    let run = server.store.begin_run(None, 1, &Config::default()).unwrap();
    for number in 1..=100 {
        server.store.record_step(run, &step(number)).unwrap();
    }
    let eval = EvalRow {
        step: 50,
        loss: Some(0.5),
        exact_match: Some(1.0),
        scores: vec![ScoreRow {
            set: "sums".into(),
            metric: "numeric".into(),
            value: 0.25,
            count: 4,
            ..ScoreRow::default()
        }],
        ..EvalRow::default()
    };
    let sample = |set: &str, position| EvalSample {
        set: set.into(),
        position,
        prompt: "<b>".into(),
        text: "t".into(),
        new_tokens: 1,
        ..EvalSample::default()
    };
    let samples = [sample("held-out", 0), sample("sums", 0), sample("sums", 1)];
    server.store.record_eval(run, &eval, &samples).unwrap();
    server.store.record_event("kind", None, Some(run), "words", None).unwrap();
    server.store.set_run_plan(run, &json!({ "peak": 3 })).unwrap();

    let (_, status) = server.get("/api/status");
    assert_eq!(status["daemon"]["current"]["progress"]["step"], 7);
    assert_eq!(status["counts"]["queued"], 0);
    let (_, runs) = server.get("/api/runs?limit=5");
    assert_eq!((&runs[0]["last_step"], &runs[0]["state"]), (&json!(100), &json!("running")));
    assert_eq!(server.get(&format!("/api/runs?before={run}")).1, json!([]));
    assert_eq!(server.get("/api/runs/1").1["config"]["train"]["seed"], 42);
    let (_, course) = server.get("/api/runs/1/metrics?from=33&points=2");
    assert_eq!((&course["bucket_steps"], &course["step"]), (&json!(64), &json!([64, 100])));
    assert_eq!(course["count"], json!([64, 36]));
    assert_eq!(course["loss"]["max"][0], 1.0);
    assert_eq!(course["loss"]["min"], json!([1.0 / 64.0, 0.01]));
    assert_eq!(course["mean_token_accuracy"]["mean"], json!([null, null]));
    assert_eq!(course["memory"]["weights"], json!([4096, 4096]));
    let (_, course) = server.get("/api/runs/1/metrics?from=33&points=2&digits=2");
    assert_eq!(course["loss"]["min"], json!([0.016, 0.01]));
    let (_, course) = server.get("/api/runs/1/metrics?memory=false");
    assert_eq!(course["memory"], json!({}));
    assert_eq!(server.get("/api/runs/1/evals").1[0]["exact_match"], 1.0);
    for query in ["", "?step=50"] {
        let (_, samples) = server.get(&format!("/api/runs/1/samples{query}"));
        assert_eq!(samples["samples"][0]["prompt"], "<b>");
        assert_eq!(samples["sets"], json!(["held-out", "sums"]));
    }
    let (_, sums) = server.get("/api/runs/1/samples?set=sums");
    assert_eq!(sums["samples"].as_array().unwrap().len(), 2);
    let (_, answers) = server.get("/api/runs/1/answers?set=sums&position=1");
    let first = &answers["answers"][0];
    assert_eq!((&first["step"], &first["text"]), (&json!(50), &json!("t")));
    assert_eq!(answers["prompt"], "<b>");
    let score = &server.get("/api/runs/1/evals").1[0]["scores"][0];
    assert_eq!((&score["base"], &score["best"]), (&json!(0.25), &json!(0.25)));
    assert_eq!(server.get("/api/events?limit=1").1[0]["message"], "words");
    server.store.record_event("alert", None, Some(run), "look", None).unwrap();
    server.store.record_event("kind", None, None, "more words", None).unwrap();
    let (_, alerts) = server.get("/api/events?kind=alert&limit=5");
    assert_eq!((alerts.as_array().unwrap().len(), &alerts[0]["message"]), (1, &json!("look")));
    assert_eq!(server.get("/api/plan").1, json!({ "run_id": run, "plan": { "peak": 3 } }));
    assert_eq!(server.get("/api/jobs").1, json!({ "running": [], "queued": [], "settled": [] }));
    for path in [
        "/api/runs/9",
        "/api/runs/9/metrics",
        "/api/runs/9/samples",
        "/api/jobs/9",
        "/api/jobs/9/preview",
        "/api/plan/table?run=9",
        "/api/plan.svg",
    ] {
        assert_eq!(server.get(path).0, 404, "{path}");
    }
    for path in ["/api/runs/x", "/api/runs?limit=x", "/api/runs?page=1", "/api/jobs/1e9"] {
        assert_eq!(server.get(path).0, 400, "{path}");
    }
    let metrics = server.request("GET /metrics", &[("Authorization", &server.bearer())], "");
    for line in [
        "chandler_step 7",
        "chandler_loss 1.25",
        "chandler_memory_bytes{category=\"weights\"} 4096",
    ] {
        assert!(body_of(&metrics).contains(line), "{metrics}");
    }
    assert!(!metrics.contains("tokens_per_second"), "what is unknown is left out");
    if let Some(samples) = as_prometheus_reads(body_of(&metrics)) {
        for sample in ["chandler_step{} 7", "chandler_memory_bytes{category=\"weights\"} 4096"] {
            assert!(samples.iter().any(|found| found == sample), "{samples:?}");
        }
        let count = body_of(&metrics).lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples.len(), count);
    }
}

#[test]
fn the_layers_of_a_run_can_be_read() {
    let server = serve(Limits::default());
    let run = server.store.begin_run(None, 1, &Config::default()).unwrap();
    let layer = |name: &str, grad_norm| json!({ "layer": name, "grad_norm": grad_norm, "update_norm": 0.5, "weight_norm": null });
    for number in 1..=100 {
        let mut row = json!(step(number));
        if number % 50 == 0 {
            row["layers"] = json!([layer("layers.0", 0.256), layer("norm", number as f64)]);
        }
        server.store.record_step(run, &serde_json::from_value(row).unwrap()).unwrap();
    }
    let (_, layers) = server.get("/api/runs/1/layers?digits=2");
    let expected = json!({
        "run_id": run, "layers": ["layers.0", "norm"], "step": [50, 100],
        "grad_norm": [[0.26, 0.26], [50.0, 100.0]], "update_ratio": [[null, null], [null, null]],
    });
    assert_eq!(layers, expected);
    for query in ["points=1", "from=51&to=150"] {
        assert_eq!(server.get(&format!("/api/runs/1/layers?{query}")).1["step"], json!([100]));
    }
    assert_eq!(server.get("/api/runs/1/layers?to=49").1["layers"], json!([]));
    assert_eq!(server.get("/api/runs/1/layers?layer=norm").0, 400);
    assert_eq!(server.get("/api/runs/9/layers").0, 404);
}

#[test]
fn the_newest_lines_of_the_log_can_be_read() {
    let server = serve(Limits::default());
    let line = |level: &str, message: &str| {
        format!("{{\"level\":\"{level}\",\"message\":\"{message}\"}}\n")
    };
    let text = line("INFO", "a") + &line("WARN", "b") + &line("INFO", "c");
    let file = server.state.logs().join("chandler.2026-01-01.jsonl");
    chandler_durable::write(&file, text.as_bytes()).unwrap();
    let messages = |query: &str| {
        let (status, answer) = server.get(&format!("/api/logs{query}"));
        assert_eq!(status, 200, "{answer}");
        let lines = answer["lines"].as_array().unwrap().clone();
        let messages: Vec<_> = lines.iter().map(|line| line["message"].clone()).collect();
        (messages, answer["more"] == true)
    };
    assert_eq!(messages(""), (vec![json!("c"), json!("b"), json!("a")], false));
    assert_eq!(messages("?lines=1"), (vec![json!("c")], true));
    assert_eq!(messages("?level=warn"), (vec![json!("b")], false));
    for query in ["?level=loud", "?lines=-1", "?file=/etc/passwd"] {
        assert_eq!(server.get(&format!("/api/logs{query}")).0, 400, "{query}");
    }
    let (_, mut stream) = open_stream(&server);
    let told = std::iter::from_fn(|| {
        let mut line = String::new();
        (stream.read_line(&mut line).unwrap() > 0).then_some(line)
    })
    .skip_while(|line| line != "event: log\n")
    .nth(1);
    assert_eq!(told.unwrap(), format!("data: {{\"bytes\":{}}}\n", text.len()));
}

#[test]
fn the_daemon_is_asked_as_over_its_socket() {
    let server = serve(Limits::default());
    for (path, body, expected) in [
        ("/api/pause", "", "Pause"),
        ("/api/resume", "{}", "Resume"),
        ("/api/stop", "{}", "Stop"),
        ("/api/eval-now", "", "EvalNow"),
        ("/api/skip", "{\"job\":3}", "Skip { job: Some(3) }"),
        ("/api/retry", "{\"job\":3}", "Retry { job: 3 }"),
        ("/api/priority", "{\"job\":3,\"priority\":\"low\"}", "Priority { job: 3, priority: Low }"),
    ] {
        assert_eq!(server.post(path, body), (200, json!({ "message": expected })), "{path}");
    }
    assert_eq!(
        server.post("/api/skip", ""),
        (409, json!({ "error": "it is idle", "hint": "wait" }))
    );
    for (path, body) in [
        ("/api/retry", ""),
        ("/api/retry", "{\"job\":\"x\"}"),
        ("/api/priority", "{\"job\":3,\"priority\":\"urgent\"}"),
        ("/api/pause", "{\"now\":true}"),
    ] {
        assert_eq!(server.post(path, body).0, 400, "{path} {body}");
    }
}

fn open_stream(server: &Server) -> (u16, BufReader<TcpStream>) {
    let mut stream = server.connect();
    let request = format!(
        "GET /api/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\r\n",
        server.bearer()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (code(&line), reader)
}

#[test]
fn a_viewer_that_does_not_read_loses_its_place_and_holds_nobody_up() {
    let limits =
        Limits { viewers: 1, write_patience: Duration::from_millis(300), ..Limits::default() };
    let server = serve(limits);
    let (status, slow) = open_stream(&server);
    assert_eq!(status, 200);
    assert_eq!(open_stream(&server).0, 503);
    // More than the buffers of a connection hold.
    let long = "x".repeat(100_000);
    let begun = Instant::now();
    let freed = (0..2000).any(|turn| {
        if turn < 200 {
            server.store.record_event("kind", None, None, &long, None).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
        turn % 20 == 0 && turn > 0 && open_stream(&server).0 == 200
    });
    assert!(freed, "after {:?}", begun.elapsed());
    drop(slow);
}

#[test]
fn a_port_that_is_taken_is_left_to_its_owner() {
    let first = serve(Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::choose(Some(Path::new("state")), folder.path());
    state.init("").unwrap();
    drop(Store::open(&state.database()).unwrap());
    let taken = first.server.address().port();
    let config = listening_on(taken.into());
    let second = HttpServer::start(&state, &config, Arc::new(answer), None).unwrap();
    assert_ne!(second.address().port(), taken);
    assert_eq!(second.url(), format!("http://{}", second.address()));
    let mut elsewhere = listening_on(0);
    elsewhere.http.address = "192.0.2.1".into();
    let error = HttpServer::start(&state, &elsewhere, Arc::new(answer), None).unwrap_err();
    assert!(error.hint().unwrap().contains("http.enabled"), "{error}");
}

/// `cargo test --release -p chandler-cli --test http million -- --ignored --nocapture`
#[test]
#[ignore = "writes a million steps"]
fn a_million_steps_are_served_at_once() {
    let server = serve(Limits::default());
    let run = server.store.begin_run(None, 1, &Config::default()).unwrap();
    let connection = rusqlite::Connection::open(server.store.path()).unwrap();
    let written = connection.execute(
        "INSERT INTO metrics
         WITH RECURSIVE steps (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM steps WHERE n < 1000000)
         SELECT ?1, n, 1.0 / n, 1.0, 0.1, n * 4096, 0.5, 5.0, n, '{\"weights\":4096,\"data\":9}'
         FROM steps",
        [run],
    );
    assert_eq!(written.unwrap(), 1_000_000);
    for query in ["", "?points=4000", "?from=500000", "?from=990000", "?from=985000&to=995000"] {
        let begun = Instant::now();
        let (status, course) = server.get(&format!("/api/runs/{run}/metrics{query}"));
        let took = begun.elapsed();
        let points = course["step"].as_array().unwrap().len();
        eprintln!("{query:<24} {points:>5} points in {took:.0?}");
        assert!(status == 200 && took < Duration::from_millis(200), "{took:?}");
    }
}
