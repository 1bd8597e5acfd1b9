//! Who is not answered, and what ends an answer.

use serde_json::json;

use super::client::{Place, Server, long_question, patient_model, question, until};
use crate::hostile::{children_of, copy_of, is_alive};
use crate::support::{fails, model, put, text_of};

#[test]
fn what_cannot_be_answered_is_said_in_the_form_of_openai() {
    let server = Server::start(&model("qwen3"), &[]);
    let place = &server.place;
    let other = Place { token: "0".repeat(64), ..place.clone() };
    let refused = other.chat(&question("Hello", json!({})));
    assert_eq!((refused.code, &refused.body["error"]["code"]), (401, &json!("invalid_api_key")));
    assert!(refused.head.contains("www-authenticate: bearer"), "{}", refused.head);
    assert_eq!(other.get("/v1/models").code, 401);
    let long = "word ".repeat(2000);
    for (request, code, what) in [
        (question(&long, json!({})), 400, "context_length_exceeded"),
        (question("Hello", json!({ "max_tokens": 2000 })), 400, "context_length_exceeded"),
        (question("Hello", json!({ "model": "gpt-4o" })), 404, "model_not_found"),
    ] {
        let refused = place.chat(&request);
        assert_eq!((refused.code, &refused.body["error"]["code"]), (code, &json!(what)));
    }
    let wrong = place.chat(&question("Hello", json!({ "temperature": "warm" })));
    let error = &wrong.body["error"];
    assert_eq!((wrong.code, &error["param"]), (400, &json!("temperature")));
    assert_eq!(error["type"], "invalid_request_error");
    assert_eq!(place.chat(&json!([])).code, 400);
    assert_eq!(place.get("/v1/nothing").code, 404);
    assert_eq!(place.get("/").code, 404);
    let large = format!("{{\"x\": \"{}\"}}", "x".repeat(9 << 20));
    let refused = place.ask("POST /v1/completions", Some(&large));
    assert_eq!(
        (refused.code, &refused.body["error"]["type"]),
        (413, &json!("invalid_request_error"))
    );
    assert_eq!(place.chat(&question("Hello", json!({ "max_tokens": 1 }))).code, 200);
}

#[test]
fn what_is_asked_and_answered_stays_out_of_the_log_at_every_level() {
    let server = Server::start(&model("qwen3"), &["--set", "log.level=trace"]);
    let place = server.place.clone();
    let secret = "WombatSiebenundneunzig";
    let answer = place.chat(&question(secret, json!({ "max_tokens": 12, "temperature": 0 })));
    assert_eq!(answer.code, 200);
    let text = answer.body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.len() > 12, "{text}");
    assert_eq!(place.chat(&question(secret, json!({ "temperature": secret }))).code, 400);
    assert_eq!(place.chat(&question("Hello", json!({ "model": secret }))).code, 404);
    let broken = format!("{{\"messages\": [{secret}");
    assert_eq!(place.ask("POST /v1/chat/completions", Some(&broken)).code, 400);
    let log = server.log();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "{log}");
    for hidden in [secret, text.trim(), &place.token] {
        assert!(!log.contains(hidden), "{hidden}: {log}");
    }
}

#[test]
fn an_address_that_others_reach_needs_the_token_and_a_taken_port_is_said() {
    let name = model("qwen3");
    let open = ["serve", "--model", &name, "--no-token", "--address", "0.0.0.0"];
    let said = fails(2, &open);
    assert!(said.contains("leave --no-token out"), "{said}");
    let server = Server::start(&name, &["--no-token"]);
    assert_eq!(server.place.token, "none is asked for");
    assert_eq!(server.place.get("/v1/models").code, 200);
    let (_, port) = server.place.address.rsplit_once(':').unwrap();
    let said = fails(1, &["serve", "--model", &name, "--port", port]);
    assert!(said.contains("another --port"), "{said}");
}

/// Where nobody goes away, the answers to the long question have 9749 tokens.
const MOST_WRITTEN: usize = 5000;

/// As the log says of the next eight answers that are over.
fn tokens_written(server: &Server) -> usize {
    let line = server.hears(" tokens in 8 answers");
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

/// The answer ends between two tokens, and its cache with it.
#[test]
fn a_client_that_goes_away_ends_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let model = patient_model(folder.path());
    let server = Server::start(text_of(&model), &["--set", "log.level=debug"]);
    let mut chunks = server.place.stream(&long_question());
    assert_eq!(chunks.code, 200);
    assert!(chunks.nth(20).is_some());
    assert!(server.place.held("kv_cache") > 0);
    let weights = server.place.held("weights");
    drop(chunks);
    until("the answer goes on", || server.place.gauge("chandler_serve_answering") == 0);
    assert_eq!((server.place.held("kv_cache"), server.place.held("weights")), (0, weights));
    let written = tokens_written(&server);
    assert!(written < MOST_WRITTEN, "{written}");
    // So does one that waits for the whole answer.
    let mut long = long_question();
    long["stream"] = json!(false);
    let waiting = server.place.send("POST /v1/chat/completions", Some(&long.to_string()));
    until("it does not begin", || server.place.gauge("chandler_serve_answering") == 1);
    drop(waiting);
    let written = tokens_written(&server);
    assert!(written < MOST_WRITTEN, "{written}");
}

#[test]
fn who_comes_when_all_places_are_taken_is_told_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = patient_model(folder.path());
    let server = Server::start(text_of(&model), &["--set", "serve.queue=0"]);
    let mut chunks = server.place.stream(&long_question());
    assert!(chunks.next().is_some());
    let refused = server.place.chat(&question("Hello", json!({ "max_tokens": 1 })));
    assert_eq!((refused.code, &refused.body["error"]["type"]), (429, &json!("requests")));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop(chunks);
    until("nobody is answered", || {
        server.place.chat(&question("Hello", json!({ "max_tokens": 1 }))).code == 200
    });
}

#[test]
fn within_a_limit_an_answer_is_cut_or_refused_and_the_server_stays() {
    let name = model("qwen3");
    let heap = {
        let server = Server::start(&name, &[]);
        assert_eq!(server.place.chat(&question("Hello", json!({ "max_tokens": 1 }))).code, 200);
        server.place.gauge("chandler_heap_bytes")
    };
    // A cache of eight rows would take eight MiB.
    let limit = format!("memory.limit={}KiB", (heap + (4 << 20)) >> 10);
    let large = question("Tell me much.", json!({ "n": 8, "max_tokens": 900, "seed": 1 }));
    let small = question("Hello", json!({ "max_tokens": 4 }));
    for (policy, code) in [("postpone", 503), ("adapt", 200)] {
        let policy = format!("memory.on_pressure={policy}");
        let server = Server::start(&name, &["--set", &limit, "--set", &policy]);
        let answer = server.place.chat(&large);
        assert_eq!(answer.code, code, "{answer:?}");
        if code == 503 {
            let error = &answer.body["error"];
            assert_eq!(
                (&error["type"], &error["code"]),
                (&json!("server_busy"), &json!("out_of_memory"))
            );
            assert!(error["message"].as_str().unwrap().contains("bytes are lacking"), "{error}");
            assert!(answer.head.contains("retry-after: "), "{}", answer.head);
            server.hears("bytes are lacking");
        } else {
            server.hears("cut to");
        }
        assert_eq!(server.place.held("kv_cache"), 0);
        assert!(server.place.gauge("chandler_heap_bytes") < heap + (4 << 20));
        assert_eq!(server.place.chat(&small).code, 200);
    }
    // The cache of a long prompt fits, and what goes through the blocks does not.
    let limit = format!("memory.limit={}KiB", (heap + (1200 << 10)) >> 10);
    let server = Server::start(&name, &["--set", &limit]);
    let long = question(&"one two three four ".repeat(110), json!({ "max_tokens": 1 }));
    let answer = server.place.chat(&long);
    assert_eq!((answer.code, &answer.body["error"]["code"]), (503, &json!("out_of_memory")));
    server.hears("an answer was given up");
    assert_eq!(server.place.held("kv_cache"), 0);
    assert_eq!(server.place.chat(&small).code, 200, "it goes on after that");
    let said = fails(5, &["serve", "--model", &name, "--port", "0", "--set", "memory.limit=1MiB"]);
    assert!(said.contains("the model needs"), "{said}");
}

/// A template that takes all memory for one prompt ends its worker, and nothing else.
#[test]
fn a_prompt_that_ends_the_worker_is_refused_and_the_next_one_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of("qwen3", folder.path());
    let template = "{% if messages[0].content == 'boom' %}{% set x = 'xxxxxxxxxxxxxxxx' %}\
                    {{ x | replace('x', x) | replace('x', x) | replace('x', x) | replace('x', x) \
                    | replace('x', x) | replace('x', x) | replace('x', x) }}\
                    {% elif messages[0].content == 'no' %}{{ raise_exception('not so') }}\
                    {% else %}{{ messages[0].content }}{% endif %}";
    put(&copy.join("chat_template.jinja"), template);
    let server = Server::start(text_of(&copy), &["--set", "limits.worker_memory=256MiB"]);
    let ask = |content: &str| server.place.chat(&question(content, json!({ "max_tokens": 2 })));
    let worker = children_of(server.pid());
    assert_eq!((worker.len(), ask("Hello").code), (1, 200));
    let refused = ask("no");
    assert_eq!((refused.code, &refused.body["error"]["param"]), (400, &json!("messages")));
    assert!(refused.body.to_string().contains("not so"), "{refused:?}");
    assert_eq!(children_of(server.pid()), worker, "the worker stays");
    let refused = ask("boom");
    assert_eq!(refused.code, 400, "{refused:?}");
    assert!(refused.body.to_string().contains("limits.worker_memory"), "{refused:?}");
    assert_eq!(ask("Hello").code, 200);
    let next = children_of(server.pid());
    assert!(next.len() == 1 && next != worker && !is_alive(worker[0]), "{worker:?} {next:?}");
    // One that somebody stops is replaced too.
    std::process::Command::new("kill").args(["-KILL", &next[0].to_string()]).status().unwrap();
    assert_eq!(ask("Hello").code, 200);
    // One that would be replaced by another tokenizer's is not: model and tokenizer are read anew.
    let tokenizer = copy.join("tokenizer.json");
    put(&tokenizer, std::fs::read_to_string(&tokenizer).unwrap() + "\n");
    let next = children_of(server.pid());
    std::process::Command::new("kill").args(["-KILL", &next[0].to_string()]).status().unwrap();
    let refused = ask("Hello");
    assert_eq!(refused.code, 503, "{refused:?}");
    assert!(refused.body.to_string().contains("changed meanwhile"), "{refused:?}");
    assert_eq!(ask("Hello").code, 200);
}

/// Without places, who asks one thing after the other is answered each time.
#[test]
fn a_client_alone_is_never_told_to_come_again() {
    let server = Server::start(&model("qwen3"), &["--set", "serve.queue=0"]);
    for number in 0..40 {
        let tokens = if number % 4 == 3 { 2000 } else { 1 };
        let answer = server.place.chat(&question("Hello", json!({ "max_tokens": tokens })));
        assert_eq!(answer.code, if tokens == 1 { 200 } else { 400 }, "{number}: {answer:?}");
    }
}

#[test]
fn a_file_that_holds_no_token_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let notes = folder.path().join("notes.txt");
    put(&notes, "my notes");
    let name = model("qwen3");
    let said = fails(1, &["serve", "--model", &name, "--token-file", text_of(&notes)]);
    assert!(said.contains("holds no token") && said.contains("name another file"), "{said}");
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "my notes");
}
