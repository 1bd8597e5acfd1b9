//! `chandler generate`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::App;
use super::talk::{Talk, TalkArgs};
use crate::engine::{EngineError, stop_watcher, text_of};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    talk: TalkArgs,
    /// JSON file with a list of messages, or an object with `messages` and, if wanted, `tools`
    #[arg(long, value_name = "FILE.json", required_unless_present = "prompt")]
    messages: Option<PathBuf>,
    /// One user message
    #[arg(long, value_name = "TEXT", conflicts_with = "messages")]
    prompt: Option<String>,
    /// Print prompt_ids, new_ids, text and logprobs as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn generate(app: &App, args: &GenerateArgs) -> Result<Exit, Failure> {
    let (talk, prompt_ids) = Talk::open(app, &args.talk, Some(&conversation(args)?))?;
    let mut watcher = stop_watcher(&talk.tokenizer, talk.stops());
    let answer = talk.answer(prompt_ids, &|| false, &mut watcher)?;
    let text = text_of(&talk.tokenizer, &answer, talk.stops())?;
    if args.json {
        output::print_json(&json!({
            "prompt_ids": answer.prompt_ids,
            "new_ids": answer.new_ids,
            "text": text,
            "logprobs": answer.logprobs,
            "ended": answer.ended,
        }))?;
    } else {
        output::print(&format!("{text}\n"))?;
    }
    Ok(Exit::Ok)
}

/// The conversation as a record; an answer at its end is left out by whoever asks.
fn conversation(args: &GenerateArgs) -> Result<Value, EngineError> {
    let Some(path) = &args.messages else {
        let content = args.prompt.clone().unwrap_or_default();
        return Ok(json!({ "messages": [{ "role": "user", "content": content }] }));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|source| EngineError::Read { path: path.clone(), source })?;
    let expected = "a JSON list of messages, each with role and content";
    let bad = |reason: String| EngineError::Json { path: path.clone(), expected, reason };
    match serde_json::from_str(&text).map_err(|error| bad(error.to_string()))? {
        messages @ Value::Array(_) => Ok(json!({ "messages": messages })),
        object @ Value::Object(_) if object.get("messages").is_some() => Ok(object),
        _ => Err(bad("it is neither a list nor an object with messages".to_owned())),
    }
}
