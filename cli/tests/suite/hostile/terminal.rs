//! Text of strangers on its way to a terminal.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{copy_of, once, state_for};
use crate::python::skipped;
use crate::support::{model, ok, put, run, text_of};

const EVIL: &str = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}8m\u{202e}\r\u{8}\u{2066}";

/// Fails where a character would act on a terminal.
fn harmless(text: &str) {
    let acts = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert_eq!(text.chars().find(|c| acts(*c)), None, "{text:?}");
}

#[test]
fn a_preview_spells_out_what_acts_and_its_json_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    let text = format!("a{EVIL}b");
    put(&file, json!({ "prompt": "p", "completion": text }).to_string());
    let name = model("qwen3");
    let shown = ok(&["data", "preview", text_of(&file), "--model", &name]);
    harmless(&shown);
    assert!(shown.contains("\\u{1b}[2J\\u{9b}8m\\u{202e}\\u{d}"), "{shown}");
    let json = ok(&["data", "preview", text_of(&file), "--model", &name, "--json"]);
    harmless(&json);
    let row: Value = serde_json::from_str(&json).unwrap();
    assert!(row["text"].as_str().unwrap().contains(&text), "{row}");
}

#[test]
fn names_and_messages_of_strangers_are_spelt_out_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of("qwen3", folder.path());
    let header =
        json!({ format!("t{EVIL}"): { "dtype": "F32", "shape": [9], "data_offsets": [0, 4] } });
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 4]);
    put(&copy.join("model.safetensors"), bytes);
    let data = folder.path().join("a.jsonl");
    put(&data, "{\"text\": \"fine\"}\n");
    let out = folder.path().join("out");
    let train = |model: &str| {
        let output =
            run(&["train", "--model", model, "--data", text_of(&data), "--output", text_of(&out)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        harmless(&said);
        said
    };
    assert!(train(text_of(&copy)).contains("u{1b}"));
    edit_type(&copy);
    assert!(train(text_of(&copy)).contains("u{1b}"));
    assert!(train(&format!("/nowhere/{EVIL}")).contains("\\u{1b}"));
    // A template that speaks to the terminal.
    let copy = copy_of_in("templated", folder.path());
    put(&copy.join("chat_template.jinja"), format!("{{{{ raise_exception('{EVIL}') }}}}"));
    put(&data, json!({ "messages": [{ "role": "assistant", "content": "a" }] }).to_string());
    let state = state_for(folder.path(), text_of(&copy));
    ok(&["add", "--dir", &state, text_of(&data)]);
    let seen = once(&state, &[]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    harmless(&seen.said);
    for args in [&["jobs"][..], &["status"], &["jobs", "--json"], &["status", "--json"]] {
        harmless(&ok(&[args, &["--dir", &state]].concat()));
    }
    for folder in ["logs", "failed"] {
        for entry in fs::read_dir(Path::new(&state).join(folder)).unwrap().flatten() {
            harmless(&fs::read_to_string(entry.path()).unwrap());
        }
    }
}

fn edit_type(model: &Path) {
    super::edit(&model.join("config.json"), |config| config["model_type"] = json!(EVIL));
}

fn copy_of_in(name: &str, folder: &Path) -> std::path::PathBuf {
    let inner = folder.join(name);
    fs::create_dir(&inner).unwrap();
    copy_of("qwen3", &inner)
}

/// A terminal gets colours of ours, and nothing of theirs.
#[test]
fn on_a_terminal_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    put(&file, json!({ "prompt": "p", "completion": format!("a{EVIL}b") }).to_string());
    let command = format!(
        "{} data preview {} --model {}",
        env!("CARGO_BIN_EXE_chandler"),
        text_of(&file),
        model("qwen3")
    );
    // util-linux's script gives a command a terminal of its own.
    let typed = std::process::Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::null())
        .output();
    let Ok(typed) = typed else { return skipped("there is no `script`") };
    let shown = String::from_utf8_lossy(&typed.stdout).replace("\r\n", "\n");
    assert!(shown.contains("\u{1b}[32m"), "trained text is green: {shown:?}");
    harmless(
        &["\u{1b}[32m", "\u{1b}[2m", "\u{1b}[0m"]
            .iter()
            .fold(shown, |text, colour| text.replace(colour, "")),
    );
}
