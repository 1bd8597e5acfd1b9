//! `chandler export`: models and what is known about runs, for others to read.

mod adapter;
mod gguf;
mod model;
mod tables;

use std::path::Path;

use clap::{Args, Subcommand};

use super::App;
use crate::exit::Exit;
use crate::failure::Failure;

/// `chandler export DIR` is `chandler export model DIR`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct ExportArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    model: model::ModelArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write a model to a new folder, with an adapter merged into it or in another type
    Model(model::ModelArgs),
    /// Write the adapter of a run, from its checkpoint, as a folder that peft loads
    Adapter(adapter::AdapterArgs),
    /// Write a model as one GGUF file, for llama.cpp and what is built on it
    Gguf(gguf::GgufArgs),
    /// Write the metrics of steps: CSV, JSON lines, Parquet or TensorBoard
    Metrics(tables::MetricsArgs),
    /// Write the norms of each layer's gradient, update and weights: CSV, JSON lines or Parquet
    Layers(tables::TableArgs),
    /// Write the results of evaluations: CSV, JSON lines or Parquet
    Evals(tables::TableArgs),
    /// Write what each eval set scored, metric by metric: CSV, JSON lines or Parquet
    Scores(tables::TableArgs),
    /// Write the answers that were generated: CSV, JSON lines or Parquet
    Samples(tables::TableArgs),
    /// Write what happened: CSV, JSON lines or Parquet
    Events(tables::TableArgs),
}

pub(super) fn export(app: &App, args: &ExportArgs) -> Result<Exit, Failure> {
    use crate::export::Subject;
    match &args.what {
        None => model::export(app, &args.model),
        Some(What::Model(args)) => model::export(app, args),
        Some(What::Adapter(args)) => adapter::export(app, args),
        Some(What::Gguf(args)) => gguf::export(app, args),
        Some(What::Metrics(args)) => tables::metrics(app, args),
        Some(What::Layers(args)) => tables::table(app, args, Subject::Layers),
        Some(What::Evals(args)) => tables::table(app, args, Subject::Evals),
        Some(What::Scores(args)) => tables::table(app, args, Subject::Scores),
        Some(What::Samples(args)) => tables::table(app, args, Subject::Samples),
        Some(What::Events(args)) => tables::table(app, args, Subject::Events),
    }
}

/// Refuses a folder to write to that somebody uses, before anything is loaded.
fn check_new(folder: &Path) -> Result<(), Failure> {
    let is_free = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_free {
        return Ok(());
    }
    let error = anyhow::anyhow!("{} is there already, and no empty folder", folder.display());
    Err(Failure::new(Exit::Usage, error, Some("name a new folder".to_owned())))
}
