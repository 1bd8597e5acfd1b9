//! `chandler export metrics|layers|evals|scores|samples|events`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::App;
use crate::exit::Exit;
use crate::export::{Destination, Format, Selection, Subject, write_events, write_table};
use crate::failure::Failure;
use crate::output;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct TableArgs {
    /// The file; `-` is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// The format [default: as the file's name says, else csv, or jsonl on standard output with --json]
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct MetricsArgs {
    /// The file, or the folder for TensorBoard; `-` is standard output
    #[arg(value_name = "FILE|DIR", default_value = "-")]
    output: PathBuf,
    /// The format [default: as the file's name says, else csv, or jsonl on standard output with --json]
    #[arg(long, value_enum)]
    format: Option<MetricsFormat>,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MetricsFormat {
    /// Comma-separated values by RFC 4180, with a head line
    Csv,
    /// One JSON object a line
    Jsonl,
    /// Apache Parquet
    Parquet,
    /// Event files for TensorBoard, evaluations and samples included
    Tensorboard,
}

#[derive(Debug, Args)]
struct Which {
    /// One run alone [default: all]
    #[arg(long, value_name = "N", conflicts_with = "job")]
    run: Option<i64>,
    /// The runs of one job alone
    #[arg(long, value_name = "N")]
    job: Option<i64>,
    /// Say as JSON what was written, or write JSON lines to standard output
    #[arg(long)]
    json: bool,
}

impl Which {
    fn selection(&self) -> Selection {
        match (self.run, self.job) {
            (Some(run), _) => Selection::Run(run),
            (None, Some(job)) => Selection::Job(job),
            (None, None) => Selection::All,
        }
    }
}

pub(super) fn metrics(app: &App, args: &MetricsArgs) -> Result<Exit, Failure> {
    let format = match args.format {
        Some(MetricsFormat::Tensorboard) => return tensorboard(app, args),
        Some(MetricsFormat::Csv) => Some(Format::Csv),
        Some(MetricsFormat::Jsonl) => Some(Format::Jsonl),
        Some(MetricsFormat::Parquet) => Some(Format::Parquet),
        None => None,
    };
    write(app, Subject::Metrics, &args.output, format, &args.which)
}

pub(super) fn table(app: &App, args: &TableArgs, subject: Subject) -> Result<Exit, Failure> {
    write(app, subject, &args.output, args.format, &args.which)
}

fn write(
    app: &App,
    subject: Subject,
    output: &Path,
    format: Option<Format>,
    which: &Which,
) -> Result<Exit, Failure> {
    let store = Store::open(&app.state()?.database())?;
    let destination = match output.to_str() {
        Some("-") => Destination::Stdout,
        _ => Destination::File(output.to_owned()),
    };
    // On standard output, the table itself is what the command says.
    let usual = match destination {
        Destination::Stdout if which.json => Format::Jsonl,
        _ => Format::Csv,
    };
    let format = format.or(Format::of_name(output)).unwrap_or(usual);
    let rows = write_table(&store, subject, which.selection(), format, &destination)?;
    match (destination, which.json) {
        // Nothing may stand behind the table.
        (Destination::Stdout, _) => {}
        (Destination::File(path), true) => {
            output::print_json_line(&json!({ "file": path, "rows": rows }))?;
        }
        (Destination::File(path), false) => {
            let noun = if rows == 1 { "row" } else { "rows" };
            output::print(&format!("{rows} {noun} in {}\n", path.display()))?;
        }
    }
    Ok(Exit::Ok)
}

fn tensorboard(app: &App, args: &MetricsArgs) -> Result<Exit, Failure> {
    if args.output == Path::new("-") {
        let error = anyhow::anyhow!("TensorBoard reads folders");
        return Err(Failure::new(Exit::Usage, error, Some("name a folder".to_owned())));
    }
    let store = Store::open(&app.state()?.database())?;
    let written = write_events(&store, args.which.selection(), &args.output)?;
    if args.which.json {
        let file = |(path, events): &(PathBuf, u64)| json!({ "file": path, "events": events });
        output::print_json_line(&written.iter().map(file).collect::<Vec<_>>())?;
        return Ok(Exit::Ok);
    }
    let (runs, place) = (written.len(), args.output.display());
    let noun = if runs == 1 { "run" } else { "runs" };
    output::print(&format!("{runs} {noun} in {place}: tensorboard --logdir {place}\n"))?;
    Ok(Exit::Ok)
}
