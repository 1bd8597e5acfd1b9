//! Loss on the assistant's turns.

use chandler_data::{ChatTemplate, DataOptions, LossOn, TextPipeline, Tokenizer};
use serde_json::json;

use crate::support::{MODELS, golden, goldens, ids, labels, pipeline};

fn options() -> DataOptions {
    DataOptions { loss_on: LossOn::Assistant, ..DataOptions::default() }
}

#[test]
fn marked_turns_have_the_labels_of_trl() {
    let mut checked = 0;
    for name in MODELS.iter().filter(|name| **name != "mistral") {
        let expected = golden(name, "assistant_only.json");
        let tokenizer = Tokenizer::open(&goldens().join("models").join(name)).unwrap();
        let source = match expected["training_template"].as_str() {
            Some(source) => source.to_owned(),
            None => std::fs::read_to_string(goldens().join("data/chatml_gen.jinja")).unwrap(),
        };
        let template = ChatTemplate::new(source, &tokenizer).unwrap();
        assert!(template.marks_generation());
        let pipeline = TextPipeline::new(tokenizer, Some(template));
        for row in expected["rows"].as_array().unwrap() {
            let line = json!({ "messages": row["messages"] }).to_string();
            let example = pipeline.example(&line, &options()).unwrap();
            assert_eq!(example.input_ids, ids(&row["input_ids"]), "{name} {line}");
            assert_eq!(example.labels(), labels(&row["labels"]), "{name} {line}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

/// Without marks, every family's own template: what is trained is each answer and what ends it.
#[test]
fn unmarked_turns_are_found_too() {
    for name in MODELS {
        let pipeline = pipeline(name);
        let line = json!({ "messages": [
            { "role": "user", "content": "What is 2 + 2?" },
            { "role": "assistant", "content": "It is four." },
            { "role": "user", "content": "And 3 + 3?" },
            { "role": "assistant", "content": "Six." },
        ] });
        let example = pipeline.example(&line.to_string(), &options()).unwrap();
        let trained: Vec<u32> = example.trained_ids().collect();
        let text = pipeline.tokenizer().decode(&trained, false).unwrap();
        let (first, second) = (text.find("It is four.").unwrap(), text.find("Six.").unwrap());
        assert!(first < second, "{name}: {text}");
        assert!(!text.contains("What is") && !text.contains("And 3"), "{name}: {text}");
        let end = match name {
            "gemma2" | "gemma3" => "<end_of_turn>",
            "mistral" => "</s>",
            "llama-gqa" => "<|eot_id|>",
            _ => "<|im_end|>",
        };
        assert_eq!(text.matches(end).count(), 2, "{name}: {text}");
    }
}

#[test]
fn the_completion_of_a_conversation_is_its_last_turn() {
    let pipeline = pipeline("qwen2");
    let line = json!({ "messages": [
        { "role": "user", "content": "one" },
        { "role": "assistant", "content": "two" },
        { "role": "user", "content": "three" },
        { "role": "assistant", "content": "four" },
    ] });
    let example = pipeline.example(&line.to_string(), &DataOptions::default()).unwrap();
    let trained: Vec<u32> = example.trained_ids().collect();
    assert_eq!(pipeline.tokenizer().decode(&trained, false).unwrap(), "four<|im_end|>\n");
    let all = DataOptions { loss_on: LossOn::All, ..DataOptions::default() };
    let example = pipeline.example(&line.to_string(), &all).unwrap();
    assert!(example.trained.iter().all(|trained| *trained));
    let unanswered = json!({ "messages": [{ "role": "user", "content": "one" }] }).to_string();
    let error = pipeline.example(&unanswered, &DataOptions::default()).unwrap_err();
    assert!(error.to_string().contains("last message is not the assistant's"), "{error}");
}
