//! Files and folders that cannot be used, and what is said about them.

use std::fs;
use std::path::PathBuf;

use chandler_data::{DataError, DataOptions, Dataset, TextPipeline};

use crate::support::{goldens, open, pipeline};

fn error(bytes: &[u8]) -> DataError {
    let error = open(bytes, "qwen3", &DataOptions::default()).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error
}

#[test]
fn an_empty_file() {
    for bytes in [b"".as_slice(), b"\n\n  \n", b"\xef\xbb\xbf"] {
        let error = error(bytes);
        assert!(matches!(error, DataError::Empty { .. }), "{error}");
        assert!(error.to_string().contains("data.jsonl holds no record"));
    }
}

#[test]
fn invalid_json_is_named_by_its_line() {
    let mut text = "{\"text\": \"fine\"}\n".repeat(6);
    text.push_str("{\"text\": \"broken\n");
    let error = error(text.as_bytes());
    let DataError::BadLines { lines, count: 1 } = &error else { panic!("{error}") };
    assert_eq!(lines[0].line, 7);
    assert!(error.to_string().contains("data.jsonl:7: it is not valid JSON"), "{error}");
    assert!(error.hint().unwrap().contains("on_bad_line"));
}

#[test]
fn a_record_without_known_keys() {
    let error = error(b"{\"question\": \"a\", \"answer\": \"b\"}\n").to_string();
    assert!(error.contains(":1: it has none of the keys"), "{error}");
    assert!(error.contains("question"), "{error}");
}

#[test]
fn no_trained_token_after_the_cut() {
    let line = format!("{{\"prompt\": \"{}\", \"completion\": \"x\"}}", "long ".repeat(50));
    let options = DataOptions { max_length: 8, ..DataOptions::default() };
    let error = open(line.as_bytes(), "qwen3", &options).unwrap_err();
    assert!(matches!(error, DataError::NothingToLearn { records: 1, max_length: 8 }), "{error}");
    assert!(error.hint().unwrap().contains("data.max_length"));
}

#[test]
fn a_token_that_the_model_does_not_have() {
    let options = DataOptions { vocab_size: Some(100), ..DataOptions::default() };
    let error = open(b"{\"text\": \"Hello, world!\"}", "qwen3", &options).unwrap_err();
    assert!(error.to_string().contains("outside of the model's vocabulary of 100"), "{error}");
}

fn copy_without(name: &str, leave_out: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join("models").join(name)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if !leave_out.contains(&name.to_str().unwrap()) {
            fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    folder
}

#[test]
fn a_missing_tokenizer() {
    let folder = copy_without("qwen3", &["tokenizer.json"]);
    let error = TextPipeline::open(folder.path()).unwrap_err();
    assert!(matches!(error, DataError::MissingTokenizer { .. }), "{error}");
    assert!(error.hint().unwrap().contains("tokenizer.json"));
}

#[test]
fn a_missing_chat_template_matters_for_chats_alone() {
    let folder = copy_without("qwen3", &["chat_template.jinja"]);
    let pipeline = TextPipeline::open(folder.path()).unwrap();
    let options = DataOptions::default();
    assert!(pipeline.example(r#"{"text": "plain"}"#, &options).is_ok());
    let chat = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#;
    let error = pipeline.example(chat, &options).unwrap_err();
    assert!(matches!(error, DataError::MissingTemplate), "{error}");
    assert!(error.hint().unwrap().contains("chat_template.jinja"));
}

#[test]
fn a_missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let files = [PathBuf::from("/nowhere/data.jsonl")];
    let options = DataOptions::default();
    let error =
        Dataset::open(&files, &pipeline("qwen3"), &options, folder.path(), &|_| {}).unwrap_err();
    assert!(error.to_string().contains("/nowhere/data.jsonl") && error.hint().is_some());
}

#[test]
fn a_template_that_loops_for_ever_is_stopped() {
    use chandler_data::{ChatTemplate, RenderOptions, Tokenizer};
    let tokenizer = Tokenizer::open(&goldens().join("models/qwen3")).unwrap();
    let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source.to_owned(), &tokenizer).unwrap();
    let messages = vec![serde_json::json!({ "role": "user", "content": "a" })];
    let error = template.render(&messages, &RenderOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::TemplateBounds { .. }), "{error}");
}
