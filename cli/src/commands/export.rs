//! `chandler export`.

use std::path::PathBuf;

use candle_core::{DType, Device};
use chandler_model::CausalLm;
use clap::{Args, ValueEnum};

use super::App;
use crate::engine::{self, EngineError, model_folder};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The new folder
    #[arg(value_name = "DIR")]
    output: PathBuf,
    /// Folder with a Hugging Face model, or an id on the hub [default: the newest model]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Merge this peft adapter into the weights
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The type of the weights [default: as they are]
    #[arg(long, value_enum)]
    dtype: Option<SavedDtype>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SavedDtype {
    F32,
    Bf16,
    F16,
}

pub(super) fn export(app: &App, args: &ExportArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    let newest = app.state.model();
    let source = if args.model.is_none() && newest.join("config.json").is_file() {
        newest
    } else {
        model_folder(&config, &Progress::new(&app.terminal))?
    };
    if args.output.join("config.json").exists() {
        let error = anyhow::anyhow!("{} already holds a model", args.output.display());
        return Err(Failure::new(Exit::Usage, error, Some("name a new folder".to_owned())));
    }
    let dtype = args.dtype.map(|dtype| match dtype {
        SavedDtype::F32 => DType::F32,
        SavedDtype::Bf16 => DType::BF16,
        SavedDtype::F16 => DType::F16,
    });
    let mut model = CausalLm::load(&source, None, &Device::Cpu).map_err(EngineError::from)?;
    let saved = dtype.unwrap_or(model.dtype());
    if let Some(adapter) = &args.adapter {
        // The product of the two matrices is added in f32 and rounded once.
        model =
            CausalLm::load(&source, Some(DType::F32), &Device::Cpu).map_err(EngineError::from)?;
        model.load_adapter(adapter).map_err(EngineError::from)?;
    }
    engine::export(&mut model, &source, &args.output, saved)?;
    app.print(
        &format!("{}\n", args.output.display()),
        &serde_json::json!({ "folder": args.output, "dtype": saved.as_str() }),
    )?;
    Ok(Exit::Ok)
}
