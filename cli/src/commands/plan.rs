//! `chandler plan`.

use std::io::Write;
use std::path::{Path, PathBuf};

use chandler_data::Dataset;
use chandler_vram::{Bytes, Plan};
use clap::Args;
use serde::Serialize;

use super::App;
use super::bench::{product_peak, train_flops_per_token};
use crate::config::{Config, MemorySize};
use crate::engine::{
    EngineError, Planning, Reader, data_options, dtype, fitting, memory_room, model_folder,
    open_device, train_settings,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;
use crate::place::Place;
use crate::plan::{Paper, Table, draw, hollow, why_not};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Folder with a Hugging Face model (its config.json is enough), or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Plan for the rows of this file; otherwise for rows of data.max_length tokens
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Plan with this adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Memory to plan for, such as 24GiB [default: what this machine has free]
    #[arg(long, value_name = "SIZE")]
    device: Option<Bytes>,
    /// What other programs hold of it
    #[arg(long, value_name = "SIZE", requires = "device")]
    others: Option<Bytes>,
    /// It is a GPU, of another machine or of this one: plan for its ops and its context
    #[arg(long, requires = "device")]
    gpu: bool,
    /// What the driver of the GPU takes for the program [default: 512MiB]
    #[arg(long, value_name = "SIZE", requires = "gpu")]
    context: Option<Bytes>,
    /// In place of data.max_length
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// In place of eval.max_new_tokens
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// In place of eval.batch_size
    #[arg(long, value_name = "N")]
    eval_batch: Option<usize>,
    /// Draw the bytes by category into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is taken for granted of a card that is not there to be asked. It has been measured on none.
const CONTEXT_BYTES: u64 = 512 << 20;

/// What `plan --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// The plan of what the configuration says, or of what fits of it.
    #[serde(flatten)]
    plan: Plan,
    /// How the steps are cut to fit.
    fit: chandler_trainer::Fit,
    table: Table,
}

pub(super) fn plan(app: &App, args: &PlanArgs) -> Result<Exit, Failure> {
    let mut config = app.config_for(args.model.as_deref())?;
    args.set(&mut config);
    logging::init(&config.log, &app.terminal, None)?;
    let folder = model_folder(&config, &Progress::new(&app.terminal))?;
    let model = hollow(&config, &folder, args.adapter.as_deref())?;
    let progress = Progress::new(&app.terminal);
    let reader = Reader {
        vocab_size: Some(model.config().vocab_size),
        ..Reader::new(&config, &folder, &progress)
    };
    let rows = args.data.as_deref().map(|file| read_rows(&config, &reader, file));
    let rows = rows.transpose()?;
    let mut planning = Planning::new(&config, &model, rows.as_ref(), None);
    planning.budget = match (args.device, args.others) {
        (Some(Bytes(device)), others) => {
            Some(device.saturating_sub(others.map_or(0, |Bytes(bytes)| bytes)))
        }
        (None, _) => memory_room(&config),
    };
    // As a run is held to it.
    if let Some(limit) = config.memory.limit.as_ref().and_then(MemorySize::bytes) {
        planning.budget = Some(planning.budget.map_or(limit, |budget| budget.min(limit)));
    }
    if args.gpu {
        planning.on_gpu = true;
        planning.context = args.context.map_or(CONTEXT_BYTES, |Bytes(bytes)| bytes);
    }
    let settings = train_settings(&config);
    let (fit, plan) = fitting(&planning, &settings);
    // What another machine computes in a second is not known.
    let flops = match args.device {
        Some(_) => None,
        // A GPU that another process trains on is not measured.
        None => match open_device(config.model.device.place(), None) {
            Ok(device) => Some(product_peak(dtype(&config), &device)?),
            Err(EngineError::GpuLock(_)) => None,
            Err(error) => return Err(error.into()),
        },
    };
    let flops_per_token = train_flops_per_token(&model, config.data.max_length);
    let speed = flops.map(|flops| flops / flops_per_token);
    let table = Table::of(&planning, &settings, speed);
    if let Some(path) = &args.svg {
        let picture = draw(&plan, &table, Paper::White);
        put(path, picture.as_bytes())?;
    }
    let exit = if plan.fits == Some(false) { Exit::DoesNotFit } else { Exit::Ok };
    if args.json {
        output::print_json(&Report { plan, fit, table })?;
        return Ok(exit);
    }
    let mut text = format!("{plan}\n");
    if fit != chandler_trainer::Fit::default() {
        text += &format!("  with cuts: {fit}\n");
    }
    if let (Some(Bytes(device)), Some(Bytes(others)), Some(false)) =
        (args.device, args.others, plan.fits)
    {
        text += &format!("  {}\n", why_not(&plan, device, others));
    }
    output::print(&format!("{text}\n{table}"))?;
    Ok(exit)
}

impl PlanArgs {
    fn set(&self, config: &mut Config) {
        let put = |key: &mut usize, value: Option<usize>| *key = value.unwrap_or(*key);
        put(&mut config.data.max_length, self.seq_len);
        put(&mut config.eval.max_new_tokens, self.max_new_tokens);
        put(&mut config.eval.batch_size, self.eval_batch);
    }
}

/// Writes the picture to a file, or to a pipe or a device.
fn put(path: &Path, picture: &[u8]) -> Result<(), EngineError> {
    match Place::of(path) {
        Place::File(path) => Ok(chandler_durable::write(&path, picture)?),
        Place::Stream(path) => Place::open_stream(&path)
            .and_then(|mut stream| stream.write_all(picture))
            .map_err(|source| EngineError::Write { path, source }),
    }
}

fn read_rows(config: &Config, reader: &Reader, file: &Path) -> Result<Dataset, EngineError> {
    let options = data_options(config, reader.vocab_size);
    let cache = tempfile::tempdir()
        .map_err(|source| EngineError::Read { path: std::env::temp_dir(), source })?;
    let all = reader.tokenize(&[file.to_owned()], None, &options, cache.path(), None)?.rows;
    Ok(match options.packing {
        Some(packing) => all.packed(packing, options.max_length),
        None => all,
    })
}
