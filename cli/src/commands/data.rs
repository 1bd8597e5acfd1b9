//! `chandler data`.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::PathBuf;

use chandler_data::IGNORE_INDEX;
use clap::{Args, Subcommand};
use serde_json::json;

use super::App;
use crate::engine::{Reader, data_options, model_folder};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress, colour_is_wanted};
use crate::output;
use crate::visible::visible;
use crate::worker::PreviewRow;

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
    let progress = Progress::new(&app.terminal);
    let folder = model_folder(&config, &progress)?;
    let options = data_options(&config, None);
    let rows = args.rows.unwrap_or(if args.json { usize::MAX } else { 5 });
    let colour = colour_is_wanted(std::io::stdout().is_terminal());
    let mut printed = Ok(true);
    // Once nobody takes rows any more, none needs to be read.
    let is_over = Cell::new(false);
    let mut print = |row: PreviewRow| {
        if !is_over.get() {
            printed = if args.json {
                print_json(row)
            } else {
                output::print_while_read(&painted(&row, colour))
            };
            is_over.set(!matches!(printed, Ok(true)));
        }
    };
    let stop = || is_over.get();
    let reader = Reader { stop: &stop, ..Reader::new(&config, &folder, &progress) };
    let read = reader.preview(&args.file, &options, rows, !args.json, &mut print);
    if !is_over.get() {
        read?;
    }
    printed.map(|_| Exit::Ok)
}

fn print_json(row: PreviewRow) -> Result<bool, Failure> {
    let PreviewRow { text, input_ids, labels, .. } = row;
    let row = json!({ "text": text, "input_ids": input_ids, "labels": labels });
    output::print_json_line_while_read(&row)
}

/// A row's text by stretches of trained and untrained tokens.
fn painted(row: &PreviewRow, colour: bool) -> String {
    let total = row.input_ids.len();
    let trained = row.labels.iter().filter(|label| **label != IGNORE_INDEX).count();
    let note = if row.cut { ", cut" } else { "" };
    let mut text = format!("── line {}: {total} tokens, {trained} trained{note}\n", row.line);
    for (piece, trained) in &row.pieces {
        let piece = visible(piece);
        match (trained, colour) {
            (true, true) => text += &format!("\u{1b}[32m{piece}\u{1b}[0m"),
            (true, false) => text += &format!("⟦{piece}⟧"),
            (false, true) => text += &format!("\u{1b}[2m{piece}\u{1b}[0m"),
            (false, false) => text += &piece,
        }
    }
    text + "\n"
}
