//! `chandler plan`.

use std::path::PathBuf;

use chandler_data::{Dataset, TextPipeline};
use chandler_vram::{Bytes, Plan};
use clap::Args;

use super::App;
use crate::engine::{
    EngineError, data_options, load_trainable, model_folder, plan_of, train_settings,
};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(app: &App, args: &PlanArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let folder = model_folder(&config, &Progress::new(&app.terminal))?;
    let model = load_trainable(&config, &folder, args.adapter.as_deref())?;
    let rows = match &args.data {
        None => None,
        Some(file) => {
            let pipeline = TextPipeline::open(&folder).map_err(EngineError::from)?;
            let options = data_options(&config, Some(model.config().vocab_size));
            let cache = tempfile::tempdir()
                .map_err(|source| EngineError::Read { path: std::env::temp_dir(), source })?;
            let files = std::slice::from_ref(file);
            let all = Dataset::open(files, &pipeline, &options, cache.path(), &mut |_| {})
                .map_err(EngineError::from)?;
            Some(match options.packing {
                Some(packing) => all.packed(packing, options.max_length),
                None => all,
            })
        }
    };
    let mut plan: Plan = plan_of(&config, &model, &train_settings(&config), rows.as_ref(), None);
    if let Some(Bytes(budget)) = args.device {
        plan.budget = Some(budget);
        plan.fits = Some(plan.peak <= budget);
    }
    if args.json {
        output::print_json(&plan)?;
    } else {
        output::print(&format!("{plan}\n"))?;
    }
    Ok(if plan.fits == Some(false) { Exit::DoesNotFit } else { Exit::Ok })
}
