//! A model that is asked from the command line.

use std::path::{Path, PathBuf};

use chandler_data::Tokenizer;
use chandler_evaluator::{Ended, EvalScope, GenerateOptions, Generation};
use chandler_model::{CausalLm, ModelConfig};
use chandler_vram::Ledger;
use clap::Args;
use serde_json::Value;

use super::App;
use crate::config::Config;
use crate::engine::{EngineError, Reader, generate_options, load_model, model_folder, stop_ids};
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::serve::context;

/// Which model, and how it answers.
#[derive(Debug, Args)]
pub(super) struct TalkArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Use this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Most tokens of an answer [default: eval.max_new_tokens]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy [default: eval.temperature]
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Factor against tokens that have occurred [default: eval.repetition_penalty]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
}

/// A model in memory.
pub(super) struct Talk {
    config: Config,
    folder: PathBuf,
    progress: Progress,
    pub(super) tokenizer: Tokenizer,
    model: CausalLm,
    options: GenerateOptions,
}

impl Talk {
    /// Reads tokens of a first record, so that nothing is loaded for one that cannot be asked, then
    /// the model.
    pub(super) fn open(
        app: &App,
        args: &TalkArgs,
        first: Option<&Value>,
    ) -> Result<(Self, Vec<u32>), Failure> {
        let mut config = app.config_for(args.model.as_deref())?;
        logging::init(&config.log, &app.terminal, None)?;
        let eval = &mut config.eval;
        eval.max_new_tokens = args.max_new_tokens.unwrap_or(eval.max_new_tokens);
        eval.temperature = args.temperature.unwrap_or(eval.temperature);
        eval.repetition_penalty = args.repetition_penalty.unwrap_or(eval.repetition_penalty);
        let progress = Progress::new(&app.terminal);
        let folder = model_folder(&config, &progress)?;
        let ids = first.map(|record| ids_of(&config, &folder, &progress, record)).transpose()?;
        // The worker has had this file through its hands.
        let tokenizer = Tokenizer::open(&folder).map_err(EngineError::from)?;
        let model = load_model(&config, &folder, args.adapter.as_deref(), &progress)?;
        let options = generate_options(&config.eval, stop_ids(&folder, &model, &tokenizer)?);
        let talk = Self { config, folder, progress, tokenizer, model, options };
        Ok((talk, ids.unwrap_or_default()))
    }

    /// The tokens of a conversation that is to be answered.
    pub(super) fn ids(&self, record: &Value) -> Result<Vec<u32>, EngineError> {
        ids_of(&self.config, &self.folder, &self.progress, record)
    }

    /// The strings that end an answer.
    pub(super) fn stops(&self) -> &[String] {
        &self.config.eval.stop
    }

    /// The tokens that do.
    pub(super) fn stop_ids(&self) -> &[u32] {
        &self.options.stop_ids
    }

    /// Answers a prompt. `heard` is shown the answer after each of its tokens and may end it;
    /// nothing of a cache is left when this returns.
    pub(super) fn answer(
        &self,
        prompt: Vec<u32>,
        stop: &dyn Fn() -> bool,
        heard: &mut dyn FnMut(usize, &[u32]) -> Option<Ended>,
    ) -> Result<Generation, EngineError> {
        let mut options = self.options.clone();
        if let Some(context) = context(self.model.config()) {
            options.max_new_tokens =
                options.max_new_tokens.min(context.saturating_sub(prompt.len()));
        }
        let mut scope = EvalScope::open(&self.model, &Ledger::new()).stopped_by(stop);
        let answers = scope.generate(&[prompt], &options, heard);
        scope.close()?;
        Ok(answers?.remove(0))
    }
}

/// An error where the model does not read as much at a time.
fn ids_of(
    config: &Config,
    folder: &Path,
    progress: &Progress,
    record: &Value,
) -> Result<Vec<u32>, EngineError> {
    let shape = ModelConfig::read(folder)?;
    let vocab_size = Some(shape.vocab_size);
    let reader = Reader { vocab_size, ..Reader::new(config, folder, progress) };
    let ids = reader.ask(record.to_string())?;
    match context(&shape) {
        Some(context) if ids.len() >= context => {
            Err(EngineError::TooLong { tokens: ids.len(), context })
        }
        _ => Ok(ids),
    }
}
