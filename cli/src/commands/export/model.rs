//! `chandler export model`.

use std::path::PathBuf;

use candle_core::{DType, Device};
use chandler_model::{CausalLm, stored_dtype};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{App, check_new};
use crate::engine::{self, EngineError, model_folder};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;

#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    /// The new folder
    #[arg(value_name = "DIR", required = true)]
    output: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// The type of the weights [default: as they are]
    #[arg(long, value_enum)]
    dtype: Option<SavedDtype>,
    /// Say as JSON what was written
    #[arg(long)]
    json: bool,
}

/// Which model is exported.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Folder with a Hugging Face model, or an id on the hub [default: the newest model]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Merge this peft adapter into the weights
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SavedDtype {
    F32,
    Bf16,
    F16,
}

/// A model that is about to be exported.
pub(super) struct Loaded {
    pub(super) model: CausalLm,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// The type that most of its weights are stored in there.
    pub(super) stored: DType,
}

impl Source {
    /// The folder of the model: the named one, else the newest of the state directory, else the
    /// configured one.
    pub(super) fn folder(&self, app: &App) -> Result<PathBuf, Failure> {
        let config = app.config_for(self.model.as_deref())?;
        logging::init(&config.log, &app.terminal, None)?;
        let newest = app.state.model();
        if self.model.is_none() && newest.join("config.json").is_file() {
            return Ok(newest);
        }
        Ok(model_folder(&config, &Progress::new(&app.terminal))?)
    }

    /// Loads the model, the adapter merged.
    pub(super) fn load(&self, app: &App) -> Result<Loaded, Failure> {
        let folder = self.folder(app)?;
        let stored = stored_dtype(&folder).map_err(EngineError::from)?;
        // The product of an adapter's two matrices is added in f32 and rounded once.
        let dtype = if self.adapter.is_some() { DType::F32 } else { stored };
        let load = CausalLm::load(&folder, Some(dtype), &Device::Cpu);
        let mut model = load.map_err(EngineError::from)?;
        if let Some(adapter) = &self.adapter {
            model.load_adapter(adapter).map_err(EngineError::from)?;
            model.merge_adapter().map_err(EngineError::from)?;
        }
        Ok(Loaded { model, folder, stored })
    }
}

pub(super) fn export(app: &App, args: &ModelArgs) -> Result<Exit, Failure> {
    let Some(output) = &args.output else {
        let error = anyhow::anyhow!("no folder was named");
        let hint = "`chandler export --help` lists what can be exported".to_owned();
        return Err(Failure::new(Exit::Usage, error, Some(hint)));
    };
    check_new(output)?;
    let Loaded { mut model, folder, stored } = args.source.load(app)?;
    let dtype = args.dtype.map_or(stored, |dtype| match dtype {
        SavedDtype::F32 => DType::F32,
        SavedDtype::Bf16 => DType::BF16,
        SavedDtype::F16 => DType::F16,
    });
    engine::export(&mut model, &folder, output, dtype)?;
    if args.json {
        output::print_json_line(&json!({ "folder": output, "dtype": dtype.as_str() }))?;
    } else {
        output::print(&format!("{}\n", output.display()))?;
    }
    Ok(Exit::Ok)
}
