//! `chandler eval`.

mod asked;
mod told;

use std::path::PathBuf;

use clap::Args;

use super::App;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use asked::{Examinee, examine};

#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Records to score; where FILE is x.jsonl and x.toml lies beside it, they are an eval set with
    /// those settings, else the first eval.samples of them are answered too
    #[arg(long, value_name = "FILE", required_unless_present = "evals")]
    data: Option<PathBuf>,
    /// Ask every eval set in this folder
    #[arg(long, value_name = "DIR")]
    evals: Option<PathBuf>,
    /// Use this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Ask another model, too, and say how much the scores differ, question by question
    #[arg(long, value_name = "DIR|ID")]
    against: Option<String>,
    /// Use this peft adapter with the other model; without --against, with the same one
    #[arg(long, value_name = "DIR")]
    against_adapter: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn eval(app: &App, args: &EvalArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let progress = Progress::new(&app.terminal);
    let examinee = Examinee { config, adapter: args.adapter.as_deref() };
    let mut examined = examine(&examinee, args, &progress)?;
    let other = match (&args.against, &args.against_adapter) {
        (None, None) => None,
        (model, adapter) => {
            let model = model.as_deref().or(args.model.as_deref());
            let examinee = Examinee { config: app.config_for(model)?, adapter: adapter.as_deref() };
            Some(examine(&examinee, args, &progress)?)
        }
    };
    if let Some(other) = &other {
        examined.hold_against(other);
    }
    told::tell(&examined, other.as_ref(), args.json)?;
    Ok(Exit::Ok)
}
