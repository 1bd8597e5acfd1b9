//! What stands in a record stays out of logs, events and reports.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{copy_of, daemon, once, state_for};
use crate::support::{model, ok, put, run, text_of};

const SECRET: &str = "xyzzy-hunter2";

/// Everything that a state directory tells: logs, reports, events.
fn told(state: &str) -> String {
    let mut text = ok(&["status", "--dir", state, "--json"]) + &ok(&["jobs", "--dir", state]);
    for folder in ["logs", "failed"] {
        for entry in fs::read_dir(Path::new(state).join(folder)).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if folder == "logs" || name.contains(".report.") {
                text += &fs::read_to_string(entry.path()).unwrap();
            }
        }
    }
    text
}

/// Lines that are wrong in every way, each with the secret in it.
fn bad_lines() -> String {
    let chat = |role: &str| json!([{ "role": role, "content": SECRET }]);
    let lines = [
        format!("{{\"text\": \"{SECRET}"),
        format!("{{\"text\": {SECRET}}}"),
        json!({ SECRET.repeat(9): 1 }).to_string(),
        json!({ format!("{SECRET} with blanks"): 1 }).to_string(),
        json!({ "messages": SECRET }).to_string(),
        json!({ "messages": [{ "role": format!("{SECRET} {SECRET}") }] }).to_string(),
        json!({ "messages": chat(&format!("a {SECRET}")) }).to_string(),
        json!({ "conversations": [{ "from": format!("a {SECRET}"), "value": "b" }] }).to_string(),
        json!({ "prompt": SECRET, "completion": [SECRET] }).to_string(),
        json!({ "messages": chat("user"), "tools": format!("{{{SECRET}") }).to_string(),
    ];
    lines.join("\n") + "\n"
}

#[test]
fn no_log_event_or_report_holds_the_text_of_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of("qwen3", folder.path());
    // A template whose own words repeat the record's.
    let template = copy.join("chat_template.jinja");
    let text = fs::read_to_string(&template).unwrap();
    let refusing = "{% if 'refuse' in messages[0].content %}{{ raise_exception('I refuse ' ~ \
                    messages[0].content) }}{% endif %}{% if 'add' in messages[0].content %}{{ \
                    messages[0].content + 1 }}{% endif %}";
    put(&template, format!("{refusing}{text}"));
    let state = state_for(folder.path(), text_of(&copy));
    let chat = |word: &str| {
        json!({ "messages": [
            { "role": "user", "content": format!("{word} {SECRET}") },
            { "role": "assistant", "content": format!("{SECRET} too") },
        ] })
    };
    let good = format!("{}\n", chat("hello")).repeat(3);
    let refused = format!("{}\n{}\n", chat("refuse"), chat("add"));
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        put(&path, text);
        ok(&["add", "--dir", &state, text_of(&path)]);
    };
    file("bad.jsonl", bad_lines());
    file("refused.jsonl", refused.clone());
    file("good.jsonl", good.clone());
    let evaluate = ["--set", "eval.eval_steps=1", "--set", "eval.max_new_tokens=4"];
    let seen = once(&state, &[&evaluate[..], &["--set", "log.level=trace"]].concat());
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    for text in [&seen.said, &told(&state)] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let report = fs::read_to_string(Path::new(&state).join("failed/bad.jsonl.report.txt")).unwrap();
    for line in 1..=10 {
        assert!(report.contains(&format!("line {line}: ")), "{line}: {report}");
    }
    let refusal = Path::new(&state).join("failed/refused.jsonl.report.txt");
    let refusal = fs::read_to_string(refusal).unwrap();
    assert!(refusal.contains("in words made of the record (line 1 of the template)"), "{refusal}");
    // Skipped lines are told in the log.
    file("mixed.jsonl", bad_lines() + &refused + &good);
    let seen = once(&state, &["--set", "data.on_bad_line=skip"]);
    assert!(seen.code == Some(0) && seen.said.contains("left out"), "{}", seen.said);
    assert!(!seen.said.contains("hunter2") && !told(&state).contains("hunter2"), "{}", seen.said);
    // And where they are asked for, they are there.
    file("asked.jsonl", good);
    let args = daemon(&state, &["--once"]);
    let output = run(&[&args[..], &evaluate[..], &["--set", "log.samples=true"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("hunter2"), "{said}");
}

/// Words of a template that stand in it as they are help, and are shown.
#[test]
fn a_templates_own_words_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_of("qwen3", folder.path());
    put(&copy.join("chat_template.jinja"), "{{ raise_exception('roles must alternate') }}");
    let file = folder.path().join("a.jsonl");
    put(&file, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}\n");
    let output = run(&["data", "preview", text_of(&file), "--model", text_of(&copy)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("roles must alternate (line 1 of the template)"), "{said}");
    let _ = model("qwen3");
}
