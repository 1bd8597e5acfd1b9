//! `chandler chat`: a conversation with a model.

use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chandler_evaluator::{Ended, EvalError};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::App;
use super::talk::{Talk, TalkArgs};
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::{Failure, in_one_line};
use crate::output;
use crate::serve::Speech;

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    talk: TalkArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print each answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Ctrl-C: in an answer it ends that, and at the prompt the command.
struct Interrupt {
    at_prompt: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    fn listen() -> Result<Self, Failure> {
        let (at_prompt, asked) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let begun = flag::register_conditional_default(SIGINT, Arc::clone(&at_prompt))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&asked)));
        match begun {
            Ok(_) => Ok(Self { at_prompt, asked }),
            Err(error) => {
                let error = anyhow::Error::new(error).context("cannot listen for signals");
                Err(Failure::new(Exit::Error, error, None))
            }
        }
    }

    /// Does something that Ctrl-C ends instead of the command.
    fn during<T>(&self, work: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
        self.asked.store(false, Ordering::Relaxed);
        self.at_prompt.store(false, Ordering::Relaxed);
        let done = work(&|| self.asked.load(Ordering::Relaxed));
        self.at_prompt.store(true, Ordering::Relaxed);
        done
    }
}

pub(super) fn chat(app: &App, args: &ChatArgs) -> Result<Exit, Failure> {
    let (talk, _) = Talk::open(app, &args.talk, None)?;
    let system = args.system.as_ref().map(|text| json!({ "role": "system", "content": text }));
    let system: Vec<Value> = system.into_iter().collect();
    let is_terminal = io::stdin().is_terminal() && !args.json;
    if is_terminal {
        output::print("/new begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer\n")?;
    }
    let interrupt = Interrupt::listen()?;
    let mut messages = system.clone();
    loop {
        if is_terminal {
            output::print("\n> ")?;
        }
        let Some(line) = next_line()? else { break };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/new" => messages.clone_from(&system),
            text => {
                messages.push(json!({ "role": "user", "content": text }));
                let answered = interrupt.during(|stop| answer(&talk, &messages, stop, args.json));
                match answered {
                    Ok(answer) => {
                        end(&answer, args.json)?;
                        messages.push(json!({ "role": "assistant", "content": answer.content }));
                    }
                    // The conversation goes on without what could not be answered.
                    Err(error) if is_terminal => {
                        messages.pop();
                        apologise(&error)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(Exit::Ok)
}

fn end(answer: &Answer, as_json: bool) -> Result<(), Failure> {
    if as_json { output::print_json_line(answer) } else { output::print("\n") }
}

fn apologise(error: &EngineError) -> Result<(), Failure> {
    let hint = error.hint().map_or_else(String::new, |hint| format!("\nhint: {hint}"));
    output::print(&format!("error: {}{hint}\n", in_one_line(error)))
}

fn next_line() -> Result<Option<String>, Failure> {
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line)),
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot read what is asked");
            let hint = "it is read as lines of UTF-8".to_owned();
            Err(Failure::new(Exit::BadData, error, Some(hint)))
        }
    }
}

/// An answer, as far as it came.
#[derive(Serialize)]
struct Answer {
    content: String,
    prompt_tokens: usize,
    new_tokens: usize,
    /// Why it ended.
    ended: Value,
}

/// Answers the conversation so far, said as it comes where it is not told `as_json`.
fn answer(
    talk: &Talk,
    messages: &[Value],
    stop: &dyn Fn() -> bool,
    as_json: bool,
) -> Result<Answer, EngineError> {
    let prompt = talk.ids(&json!({ "messages": messages }))?;
    let (prompt_tokens, mut new_tokens) = (prompt.len(), 0);
    let mut speech = Speech::new(talk.stops());
    let mut content = String::new();
    let mut say = |text: &str| {
        content.push_str(text);
        as_json || output::print_while_read(text).unwrap_or(false)
    };
    let mut heard = |_: usize, ids: &[u32]| {
        // A batch that is begun anew because memory was lacking repeats what it said.
        if ids.len() <= new_tokens {
            return None;
        }
        new_tokens = ids.len();
        let newest = ids.last().filter(|id| !talk.stop_ids().contains(id))?;
        let (text, stopped) = speech.push(&talk.tokenizer, *newest);
        (!say(&text) || stopped).then_some(Ended::StopString)
    };
    let ended = match talk.answer(prompt, stop, &mut heard) {
        Ok(answer) => json!(answer.ended),
        Err(EngineError::Eval(EvalError::Stopped)) => json!("interrupted"),
        Err(error) => return Err(error),
    };
    if ended != json!(Ended::StopString) {
        say(&speech.finish(&talk.tokenizer).0);
    }
    Ok(Answer { content, prompt_tokens, new_tokens, ended })
}
