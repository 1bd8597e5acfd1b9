//! `chandler data`.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;

use chandler_data::{Example, TextPipeline};
use clap::{Args, Subcommand};
use serde_json::json;

use super::App;
use crate::config::OnBadLine;
use crate::engine::{EngineError, data_options, model_folder};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Show what is trained: the rendered text, with the trained tokens in colour
    Preview(PreviewArgs),
}

#[derive(Debug, Args)]
pub(super) struct PreviewArgs {
    /// The training file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Rows to show [default: 5, or all with --json]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Print {text, input_ids, labels} for each row, one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn data(app: &App, command: &DataCommand) -> Result<Exit, Failure> {
    let DataCommand::Preview(args) = command;
    preview(app, args)
}

fn preview(app: &App, args: &PreviewArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let folder = model_folder(&config, &Progress::new(&app.terminal))?;
    let pipeline = TextPipeline::open(&folder).map_err(EngineError::from)?;
    let options = data_options(&config, None);
    let limit = args.rows.unwrap_or(if args.json { usize::MAX } else { 5 });
    let colour = std::io::stdout().is_terminal();
    let read = |source| EngineError::Read { path: args.file.clone(), source };
    let file = std::fs::File::open(&args.file).map_err(read)?;
    let mut shown = 0;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(read)?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        if shown == limit {
            break;
        }
        let mut example = match pipeline.example(line, &options) {
            Ok(example) => example,
            Err(error) if config.data.on_bad_line == OnBadLine::Skip => {
                tracing::warn!("{}:{}: {error}", args.file.display(), index + 1);
                continue;
            }
            Err(error) => {
                let hint = error.hint();
                let place = format!("{}:{}", args.file.display(), index + 1);
                return Err(Failure::new(
                    Exit::BadData,
                    anyhow::Error::new(error).context(place),
                    hint,
                ));
            }
        };
        let cut = example.truncate(options.max_length);
        shown += 1;
        if args.json {
            let row = json!({
                "text": example.text,
                "input_ids": example.input_ids,
                "labels": example.labels(),
            });
            output::print(&format!("{row}\n"))?;
        } else {
            output::print(&painted(&pipeline, &example, index + 1, cut, colour)?)?;
        }
    }
    Ok(Exit::Ok)
}

/// A row's text by stretches of trained and untrained tokens.
fn painted(
    pipeline: &TextPipeline,
    example: &Example,
    line: usize,
    cut: bool,
    colour: bool,
) -> Result<String, EngineError> {
    let trained = example.trained_ids().count();
    let total = example.input_ids.len();
    let note = if cut { ", cut" } else { "" };
    let mut text = format!("── line {line}: {total} tokens, {trained} trained{note}\n");
    let mut start = 0;
    while start < total {
        let same = example.trained[start..].iter().take_while(|t| **t == example.trained[start]);
        let end = start + same.count();
        let piece = pipeline.tokenizer().decode(&example.input_ids[start..end], false)?;
        match (example.trained[start], colour) {
            (true, true) => text += &format!("\u{1b}[32m{piece}\u{1b}[0m"),
            (true, false) => text += &format!("⟦{piece}⟧"),
            (false, true) => text += &format!("\u{1b}[2m{piece}\u{1b}[0m"),
            (false, false) => text += &piece,
        }
        start = end;
    }
    Ok(text + "\n")
}
