//! `chandler eval`.

use std::path::PathBuf;

use chandler_model::ModelConfig;
use chandler_vram::Ledger;
use clap::Args;
use serde_json::json;

use super::App;
use crate::engine::{
    EngineError, EvalSet, Evaluated, Evaluator, Reader, data_options, load_model, model_folder,
    questions_from, stop_ids,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;
use crate::store::EvalRow;
use crate::worker::HeldOut;

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
    let progress = Progress::new(&app.terminal);
    let folder = model_folder(&config, &progress)?;
    let shape = ModelConfig::read(&folder).map_err(EngineError::from)?;
    let cache = tempfile::tempdir()
        .map_err(|source| EngineError::Read { path: std::env::temp_dir(), source })?;
    let mut options = data_options(&config, Some(shape.vocab_size));
    options.packing = None;
    let reader =
        Reader { vocab_size: options.vocab_size, ..Reader::new(&config, &folder, &progress) };
    let files = std::slice::from_ref(&args.data);
    let questions = questions_from(&config, HeldOut::All);
    let text = reader.tokenize(files, None, &options, cache.path(), Some(questions))?;
    let rows = text.rows;
    let model = load_model(&config, &folder, args.adapter.as_deref(), &progress)?;
    let tokenizer = text.tokenizer.wait()?;
    let stops = stop_ids(&folder, &model, &tokenizer)?;
    let (asked, trained) = (text.questions, text.questions_are_trained);
    let set = EvalSet::own(&config, asked, trained, Some(rows.clone()), stops, "")?;
    let (step, ledger) = (0, &Ledger::new());
    let evaluator = Evaluator {
        step,
        model: &model,
        tokenizer: &tokenizer,
        ledger,
        stop: &|| false,
        progress: &progress,
    };
    let options = Some(set.options.clone());
    let Evaluated { row, samples, shortages, troubles, .. } = evaluator.run(&[(&set, options)])?;
    progress.end();
    for words in shortages.iter().chain(&troubles) {
        tracing::warn!("{words}");
    }
    if args.json {
        output::print_json(&json!({
            "loss": row.loss,
            "perplexity": row.perplexity,
            "token_accuracy": row.token_accuracy,
            "exact_match": row.exact_match,
            "scores": row.scores,
            "rows": rows.len(),
            "samples": samples,
        }))?;
    } else {
        output::print(&figures(&row))?;
        for sample in &samples {
            output::print(&format!("---\n{}\n=> {}\n", sample.prompt, sample.text))?;
        }
    }
    Ok(Exit::Ok)
}

/// What is known of the figures, one a line.
fn figures(row: &EvalRow) -> String {
    let named = [
        ("loss", row.loss),
        ("perplexity", row.perplexity),
        ("token accuracy", row.token_accuracy),
        ("exact match", row.exact_match),
    ];
    let known = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let rows = known.map(|(name, value)| vec![name.to_owned(), format!("{value:.4}")]);
    output::table(&rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_are_not_known_are_left_out() {
        let row = EvalRow { loss: Some(1.5), exact_match: Some(0.25), ..EvalRow::default() };
        assert_eq!(figures(&row), "loss         1.5000\nexact match  0.2500\n");
    }
}
