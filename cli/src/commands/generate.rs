//! `chandler generate`.

use std::path::PathBuf;

use chandler_data::Tokenizer;
use chandler_evaluator::EvalScope;
use chandler_model::ModelConfig;
use chandler_vram::Ledger;
use clap::Args;
use serde_json::{Value, json};

use super::App;
use crate::engine::{
    EngineError, Reader, generate_options, load_model, model_folder, stop_ids, stop_watcher,
    text_of,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// JSON file with a list of messages, or an object with `messages` and, if wanted, `tools`
    #[arg(long, value_name = "FILE.json", required_unless_present = "prompt")]
    messages: Option<PathBuf>,
    /// One user message
    #[arg(long, value_name = "TEXT", conflicts_with = "messages")]
    prompt: Option<String>,
    /// Use this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Most tokens of the answer [default: eval.max_new_tokens]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy [default: eval.temperature]
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Factor against tokens that have occurred [default: eval.repetition_penalty]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Print prompt_ids, new_ids, text and logprobs as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn generate(app: &App, args: &GenerateArgs) -> Result<Exit, Failure> {
    let mut config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let eval = &mut config.eval;
    eval.max_new_tokens = args.max_new_tokens.unwrap_or(eval.max_new_tokens);
    eval.temperature = args.temperature.unwrap_or(eval.temperature);
    eval.repetition_penalty = args.repetition_penalty.unwrap_or(eval.repetition_penalty);
    let progress = Progress::new(&app.terminal);
    let folder = model_folder(&config, &progress)?;
    let shape = ModelConfig::read(&folder).map_err(EngineError::from)?;
    let reader =
        Reader { vocab_size: Some(shape.vocab_size), ..Reader::new(&config, &folder, &progress) };
    let prompt_ids = reader.ask(conversation(args)?.to_string())?;
    // The worker has had this file through its hands.
    let tokenizer = Tokenizer::open(&folder).map_err(EngineError::from)?;
    let model = load_model(&config, &folder, args.adapter.as_deref(), &progress)?;
    let options = generate_options(&config.eval, stop_ids(&folder, &model, &tokenizer)?);
    let mut watcher = stop_watcher(&tokenizer, &config.eval.stop);
    let mut scope = EvalScope::open(&model, &Ledger::new());
    let mut answers =
        scope.generate(&[prompt_ids], &options, &mut watcher).map_err(EngineError::from)?;
    scope.close().map_err(EngineError::from)?;
    let answer = answers.remove(0);
    let text = text_of(&tokenizer, &answer, &config.eval.stop)?;
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
