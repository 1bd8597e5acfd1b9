//! What is answered.

use serde_json::{Value, json};

use super::client::{Server, question};
use crate::support::{golden, model, ok, put, text_of};

/// `chandler generate` on the same messages.
fn generated(name: &str, messages: &Value, tokens: usize) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("messages.json");
    put(&file, messages.to_string());
    let tokens = tokens.to_string();
    let found = ok(&[
        "generate",
        "--model",
        &model(name),
        "--messages",
        text_of(&file),
        "--max-new-tokens",
        &tokens,
        "--json",
    ]);
    serde_json::from_str(&found).unwrap()
}

/// The contents of a stream, its finish reasons and its last chunk but one.
fn joined(server: &Server, request: &Value) -> (String, Vec<String>, Value) {
    let mut chunks: Vec<String> = server.place.stream(request).collect();
    assert_eq!(chunks.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = chunks.iter().map(|c| serde_json::from_str(c).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    let text = choices.clone().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    let ends = choices.filter_map(|choice| choice["finish_reason"].as_str()).map(str::to_owned);
    (text, ends.collect(), chunks.last().unwrap().clone())
}

#[test]
fn a_greedy_answer_is_that_of_generate_whole_and_in_chunks() {
    for name in ["qwen3", "mistral"] {
        let server = Server::start(&model(name), &[]);
        for case in golden(name, "generate.json")["greedy"].as_array().unwrap().iter().take(3) {
            let expected = generated(name, &case["messages"], 32);
            let request = json!({
                "model": name, "messages": case["messages"], "max_tokens": 32, "temperature": 0,
            });
            let answer = server.place.chat(&request);
            assert_eq!(answer.code, 200, "{answer:?}");
            let choice = &answer.body["choices"][0];
            assert_eq!(choice["message"]["content"], expected["text"], "{name}");
            let count = |value: &Value| value.as_array().unwrap().len();
            let finish = if expected["ended"] == "stop_token" { "stop" } else { "length" };
            assert_eq!(choice["finish_reason"], finish);
            let usage = &answer.body["usage"];
            assert_eq!(usage["prompt_tokens"], count(&expected["prompt_ids"]));
            assert_eq!(usage["completion_tokens"], count(&expected["new_ids"]));

            let mut request = request;
            request["stream"] = json!(true);
            request["stream_options"] = json!({ "include_usage": true });
            let (text, ends, last) = joined(&server, &request);
            assert_eq!((json!(text), ends), (expected["text"].clone(), vec![finish.to_owned()]));
            assert_eq!(&last["usage"], usage);
        }
        assert_eq!(server.interrupt(), Some(0));
    }
}

#[test]
fn a_stop_string_ends_an_answer_and_no_part_of_it_is_said() {
    let server = Server::start(&model("smol-llama"), &[]);
    let case = &golden("smol-llama", "generate.json")["greedy"][0];
    let mut request =
        json!({ "messages": case["messages"], "max_tokens": 64, "temperature": 0, "stream": true });
    let (whole, _, _) = joined(&server, &request);
    let stop: String = whole.trim_start().chars().skip(6).take(4).collect();
    request["stop"] = json!([stop, "\u{1}"]);
    let (text, ends, _) = joined(&server, &request);
    assert_eq!(
        (text.as_str(), ends),
        (&whole[..whole.find(&stop).unwrap()], vec!["stop".to_owned()])
    );
}

#[test]
fn the_same_seed_says_the_same_and_choices_differ() {
    let server = Server::start(&model("qwen3"), &[]);
    let request = question("Hello", json!({ "n": 3, "seed": 5, "max_tokens": 12 }));
    let texts = || {
        let answer = server.place.chat(&request).body;
        let choices = answer["choices"].as_array().unwrap().clone();
        choices.iter().map(|c| c["message"]["content"].clone()).collect::<Vec<_>>()
    };
    let first = texts();
    assert_eq!((first.len(), &first), (3, &texts()));
    assert!(first[0] != first[1] || first[1] != first[2], "{first:?}");
}

/// Those that wait together are answered side by side, which changes nothing.
#[test]
fn many_clients_get_each_their_own_answer() {
    let server = Server::start(&model("qwen3"), &[]);
    let ask = |number: usize| {
        let more = json!({ "temperature": 0, "max_tokens": 8 + 9 * number });
        let answer = server.place.chat(&question(&format!("What is {number} + {number}?"), more));
        assert_eq!(answer.code, 200, "{answer:?}");
        (answer.body["choices"].clone(), answer.body["usage"].clone())
    };
    let alone: Vec<_> = (0..6).map(ask).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|number| scope.spawn(move || ask(number))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn plain_completions_and_the_list_of_models_have_their_forms() {
    let server = Server::start(&model("qwen3"), &[]);
    let models = server.place.get("/v1/models").body;
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("qwen3")));
    assert_eq!(models["data"][0]["max_model_len"], 1024);
    for (id, code) in [("qwen3", 200), ("chandler", 200), ("owner/other", 404)] {
        assert_eq!(server.place.get(&format!("/v1/models/{id}")).code, code, "{id}");
    }
    let body = json!({ "prompt": ["One, two,", "Three,"], "temperature": 0, "max_tokens": 5 });
    let answer = server.place.ask("POST /v1/completions", Some(&body.to_string())).body;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert!(answer["choices"][1]["text"].is_string() && answer["usage"]["completion_tokens"] == 10);
}
