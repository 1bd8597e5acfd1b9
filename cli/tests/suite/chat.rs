//! `chandler chat`, asked through a pipe.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{chandler, model, ok};

const SHORT: [&str; 4] = ["--max-new-tokens", "6", "--temperature", "0"];

/// What a conversation prints that is made of these lines.
fn talk(lines: &str, arguments: &[&str]) -> Output {
    let mut child = chandler()
        .args(["chat", "--model", &model("qwen3")])
        .args(SHORT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that ends before it has read everything is no error.
    drop(child.stdin.take().unwrap().write_all(lines.as_bytes()));
    child.wait_with_output().unwrap()
}

fn answers(lines: &str, arguments: &[&str]) -> Vec<Value> {
    let output = talk(lines, &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_conversation_goes_on_until_it_is_begun_anew() {
    let all = answers("Who are you?\n\nAnd why?\n/new\nWho are you?\n/exit\nnever read\n", &[]);
    assert_eq!(all.len(), 3, "{all:?}");
    let generated = ok(&[
        &["generate", "--model", &model("qwen3"), "--prompt", "Who are you?", "--json"],
        &SHORT[..],
    ]
    .concat());
    let generated: Value = serde_json::from_str(&generated).unwrap();
    for answer in [&all[0], &all[2]] {
        assert_eq!(answer["content"], generated["text"]);
        assert_eq!(answer["prompt_tokens"], generated["prompt_ids"].as_array().unwrap().len());
        assert_eq!(answer["ended"], generated["ended"]);
    }
    // The second is asked with the first and its answer before it.
    let tokens = |at: usize| all[at]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(1) > tokens(0) + all[0]["new_tokens"].as_u64().unwrap(), "{all:?}");
    let told = answers("Who are you?\n", &["--system", "Be brief."]);
    assert!(told[0]["prompt_tokens"].as_u64().unwrap() > tokens(0));
}

#[test]
fn an_answer_is_printed_as_it_is() {
    let output = talk("Who are you?\n", &[]);
    let expected = &answers("Who are you?\n", &[])[0]["content"];
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{}\n", expected.as_str().unwrap())
    );
    let none = talk("", &[]);
    assert!(none.status.success() && none.stdout.is_empty());
}

#[test]
fn an_interrupt_ends_the_answer_and_at_the_prompt_the_command() {
    let mut child = chandler()
        .args(["chat", "--model", &model("qwen3"), "--max-new-tokens", "900", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut asks, mut answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let pid = Pid::from_child(&child);
    let mut first = vec![0; 16];
    asks.write_all(b"Who are you?\n").unwrap();
    answers.read_exact(&mut first).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    // It is there for another question, and ends an answer to that, too.
    let mut ended = vec![];
    while !ended.ends_with(b"\n") {
        let mut byte = [0];
        answers.read_exact(&mut byte).unwrap();
        ended.push(byte[0]);
    }
    asks.write_all(b"And why?\n").unwrap();
    answers.read_exact(&mut first).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    drop(asks);
    let mut rest = vec![];
    answers.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    let args = ["generate", "--model", &model("qwen3"), "--prompt", "Who are you?"];
    let whole = ok(&[&args, &["--max-new-tokens", "900", "--temperature", "0"][..]].concat()).len();
    assert!(16 + ended.len() < whole, "{} of {whole} bytes", ended.len());
}

#[test]
fn what_cannot_be_asked_ends_it_with_a_hint() {
    let output = talk(&"word ".repeat(50_000), &[]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{errors}");
    assert!(errors.contains("and the model reads 1024 at most"), "{errors}");
    assert!(errors.contains("hint: begin a new conversation"), "{errors}");
}
