//! `chandler export gguf`.

use std::path::PathBuf;

use candle_core::DType;
use chandler_durable::RealFs;
use chandler_model::gguf::{GgufType, write_gguf};
use chandler_vram::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::App;
use super::model::{Loaded, Source};
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct GgufArgs {
    /// The new file
    #[arg(value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    source: Source,
    /// The type of the matrices; vectors are f32 [default: as they are]
    #[arg(long = "type", value_enum)]
    weights: Option<Weights>,
    /// Say as JSON what was written
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Weights {
    F32,
    F16,
    Bf16,
    /// 8.5 bits a weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 6.6 bits a weight
    #[value(name = "q6_k")]
    Q6K,
    /// 5.5 bits a weight
    #[value(name = "q5_k")]
    Q5K,
    /// 4.5 bits a weight
    #[value(name = "q4_k")]
    Q4K,
}

pub(super) fn export(app: &App, args: &GgufArgs) -> Result<Exit, Failure> {
    if args.output.exists() {
        let error = anyhow::anyhow!("{} is there already", args.output.display());
        return Err(Failure::new(Exit::Usage, error, Some("name a new file".to_owned())));
    }
    let Loaded { model, folder, stored } = args.source.load(app)?;
    let weights = match (args.weights, stored) {
        (Some(Weights::F16), _) | (None, DType::F16) => GgufType::F16,
        (Some(Weights::Bf16), _) | (None, DType::BF16) => GgufType::Bf16,
        (Some(Weights::Q8_0), _) => GgufType::Q8_0,
        (Some(Weights::Q6K), _) => GgufType::Q6K,
        (Some(Weights::Q5K), _) => GgufType::Q5K,
        (Some(Weights::Q4K), _) => GgufType::Q4K,
        (Some(Weights::F32) | None, _) => GgufType::F32,
    };
    let written =
        write_gguf(&RealFs, &args.output, &model, &folder, weights).map_err(EngineError::from)?;
    if args.json {
        output::print_json_line(&json!({
            "file": args.output,
            "type": weights.name(),
            "tensors": written.tensors,
            "widened": written.widened,
            "bytes": written.bytes,
        }))?;
        return Ok(Exit::Ok);
    }
    let widened = match written.widened {
        0 => String::new(),
        count => format!(", {count} of them wider, since their rows do not divide into its blocks"),
    };
    output::print(&format!(
        "{}: {}, {} tensors in {}{widened}\n",
        args.output.display(),
        Bytes(written.bytes),
        written.tensors,
        weights.name(),
    ))?;
    Ok(Exit::Ok)
}
