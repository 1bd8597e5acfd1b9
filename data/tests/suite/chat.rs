//! Rendering and token ids of every family, to the letter.

use chandler_data::RenderOptions;
use serde_json::{Map, Value};

use crate::support::{MODELS, golden, ids, pipeline};

fn render_options(kwargs: &Value) -> RenderOptions {
    let mut options = RenderOptions::default();
    for (key, value) in kwargs.as_object().unwrap_or(&Map::new()) {
        match key.as_str() {
            "add_generation_prompt" => options.add_generation_prompt = value == true,
            "continue_final_message" => options.continue_final_message = value == true,
            "tools" => options.tools = Some(value.clone()),
            _ => {
                options.kwargs.insert(key.clone(), value.clone());
            }
        }
    }
    options
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    let (mut rendered, mut refused) = (0, 0);
    for name in MODELS {
        let pipeline = pipeline(name);
        let template = pipeline.template().unwrap();
        for case in golden(name, "chat_and_tokenizer.json")["chat"].as_array().unwrap() {
            let messages = case["messages"].as_array().unwrap().clone();
            let found = template.render(&messages, &render_options(&case["kwargs"]));
            let what = format!("{name} {} {}", case["name"], case["kwargs"]);
            if let Some(error) = case["error"].as_str() {
                let reason = error.split_once(": ").map_or(error, |(_, reason)| reason);
                let found = found.unwrap_err();
                assert!(found.to_string().contains(reason), "{what}: {found}");
                refused += 1;
            } else {
                let text = found.unwrap_or_else(|error| panic!("{what}: {error}")).text;
                assert_eq!(text, case["text"].as_str().unwrap(), "{what}");
                let found = pipeline.tokenizer().encode(&text, false).unwrap();
                assert_eq!(found, ids(&case["ids"]), "{what}");
                rendered += 1;
            }
        }
    }
    assert!(rendered > 100 && refused > 3, "{rendered} {refused}");
}

#[test]
fn texts_are_cut_and_joined_as_transformers_does() {
    for name in MODELS {
        let pipeline = pipeline(name);
        let tokenizer = pipeline.tokenizer();
        let expected = golden(name, "chat_and_tokenizer.json");
        assert_eq!(
            tokenizer.eos_token_id().map(u64::from),
            expected["eos_token_id"].as_u64(),
            "{name}"
        );
        for case in expected["tokenizer"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let with = tokenizer.encode(text, true).unwrap();
            assert_eq!(with, ids(&case["ids"]), "{name} {text:?}");
            let without = tokenizer.encode(text, false).unwrap();
            assert_eq!(without, ids(&case["ids_no_special"]), "{name} {text:?}");
            for (key, skip) in [("decode", false), ("decode_skip_special", true)] {
                let found = tokenizer.decode(&without, skip).unwrap();
                assert_eq!(found, case[key].as_str().unwrap(), "{name} {key} {text:?}");
            }
        }
    }
}
