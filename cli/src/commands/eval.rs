//! `chandler eval`.

use std::path::PathBuf;

use chandler_data::{Dataset, OnBadLine, TextPipeline};
use chandler_vram::Ledger;
use clap::Args;
use serde_json::json;

use super::App;
use crate::engine::{
    EngineError, Evaluated, Evaluation, data_options, generate_options, load_model, log_evaluation,
    model_folder, stop_ids,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;

#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Records to score; the first eval.samples of them are answered too
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Use this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn eval(app: &App, args: &EvalArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let folder = model_folder(&config, &Progress::new(&app.terminal))?;
    let pipeline = TextPipeline::open(&folder).map_err(EngineError::from)?;
    let model = load_model(&config, &folder, args.adapter.as_deref())?;
    let cache = tempfile::tempdir()
        .map_err(|source| EngineError::Read { path: std::env::temp_dir(), source })?;
    let mut options = data_options(&config, Some(model.config().vocab_size));
    options.packing = None;
    debug_assert!(matches!(options.on_bad_line, OnBadLine::Fail | OnBadLine::Skip));
    let files = std::slice::from_ref(&args.data);
    let rows = Dataset::open(files, &pipeline, &options, cache.path(), &mut |_| {})
        .map_err(EngineError::from)?;
    let generate = generate_options(&config, stop_ids(&folder, &model, &pipeline)?);
    let evaluation = Evaluation::new(&config, &pipeline, &rows, Some(rows.clone()), generate)?;
    let options = evaluation.options.clone();
    let Evaluated { row, samples, shortages } =
        evaluation.run(0, &model, &options, &Ledger::new(), &|| false)?;
    for shortage in &shortages {
        tracing::warn!("{shortage}");
    }
    if args.json {
        output::print_json(&json!({
            "loss": row.loss,
            "perplexity": row.perplexity,
            "token_accuracy": row.token_accuracy,
            "exact_match": row.exact_match,
            "rows": rows.len(),
            "samples": samples,
        }))?;
    } else {
        log_evaluation(&row, &[]);
        for sample in &samples {
            output::print(&format!("---\n{}\n=> {}\n", sample.prompt, sample.text))?;
        }
    }
    Ok(Exit::Ok)
}
