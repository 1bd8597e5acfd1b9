//! Tokenizers and templates that were made to do harm, as far as they are bounded in-process.

use std::fs;
use std::io::Write;
use std::path::Path;

use chandler_data::{ChatTemplate, DataError, RenderOptions, TextPipeline, Tokenizer};
use serde_json::{Value, json};

use crate::support::goldens;

/// The golden tokenizer with a change.
fn tokenizer(change: impl FnOnce(&mut Value)) -> Result<TextPipeline, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let model = goldens().join("models/qwen3");
    for name in ["tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    let text = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    let mut value = serde_json::from_str(&text).unwrap();
    change(&mut value);
    put(&folder.path().join("tokenizer.json"), &value.to_string());
    TextPipeline::open(folder.path())
}

fn put(path: &Path, text: &str) {
    fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_sound_model_passes_its_trial() {
    tokenizer(|_| {}).unwrap().probe().unwrap();
}

#[test]
fn a_tokenizer_that_makes_much_of_little_fails_its_trial() {
    let pipeline = tokenizer(|value| {
        value["normalizer"] =
            json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "z".repeat(4000) });
    });
    let error = pipeline.unwrap().probe().unwrap_err();
    assert!(error.to_string().contains("are the most"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_token_as_long_as_a_book_is_refused() {
    let error = tokenizer(|value| {
        let vocabulary = value["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.len();
        vocabulary.insert("x".repeat(20_000), json!(id));
    });
    assert!(error.unwrap_err().to_string().contains("a token of 20000 bytes"));
}

#[test]
fn nonsense_is_an_error_and_no_panic() {
    for change in [
        json!({ "type": "BPE", "vocab": {}, "merges": [["a", "b"]] }),
        json!({ "type": "Unigram", "vocab": [], "unk_id": 7 }),
        json!(null),
        json!({ "type": "WordLevel", "vocab": {}, "unk_token": "none" }),
    ] {
        // Such a tokenizer may load; then it fails on a text, as any text's fault or its own.
        if let Ok(pipeline) = tokenizer(|value| value["model"] = change) {
            let _ = pipeline.tokenizer().encode("Hello", true);
            let _ = pipeline.tokenizer().decode(&[0, 5, u32::MAX], false);
        }
    }
}

fn render(source: &str) -> Result<String, DataError> {
    let tokenizer = Tokenizer::open(&goldens().join("models/qwen3")).unwrap();
    let template = ChatTemplate::new(source.to_owned(), &tokenizer)?;
    let messages = vec![json!({ "role": "user", "content": "secret words" })];
    template.render(&messages, &RenderOptions::default()).map(|rendered| rendered.text)
}

#[test]
fn templates_are_bounded_where_that_can_be_done_in_process() {
    let nested = "{% for i in [1] %}".repeat(10_000) + &"{% endfor %}".repeat(10_000);
    let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let macros = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let printed = "{% set s = 'x' * 1000000 %}{% for i in range(9999) %}{{ s }}{% endfor %}";
    let repeated = "{{ 'x' * 99999999999999 }}";
    let indented = "{{ [1] | tojson(indent=18446744073709551615) }}";
    for source in [nested.as_str(), &brackets, macros, printed, repeated, indented] {
        let error = render(source).unwrap_err();
        assert!(error.to_string().len() < 500 && error.hint().is_some(), "{error}");
    }
    let error = render(printed).unwrap_err();
    assert!(matches!(error, DataError::TemplateBounds { .. }), "{error}");
    let error = render(indented).unwrap_err();
    assert!(error.to_string().contains("by 32 spaces at most"), "{error}");
    assert_eq!(render("{{ 'x' * 1000 }}").unwrap().len(), 1000);
}

#[test]
fn what_a_template_says_repeats_nothing_of_the_record() {
    for source in [
        "{{ raise_exception('no ' ~ messages[0].content) }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content | int }}",
        "{{ messages[0].content.nothing.at_all }}",
        "{{ messages[0].content() }}",
        "{{ messages | items }}",
        "{% include messages[0].content %}",
        "{% macro f() %}{% endmacro %}{{ f(**{messages[0].content: 1}) }}",
    ] {
        let error = render(source).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{source}: {error}");
        assert!(error.contains("line 1"), "{source}: {error}");
    }
    let own = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
    assert!(own.contains("roles must alternate"), "{own}");
}
