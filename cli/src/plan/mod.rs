//! The memory plan for people: a table of what fits into how much, and a picture.

mod picture;
mod table;

use std::path::Path;

use candle_core::Device;
use chandler_model::{CausalLm, ModelConfig};
use chandler_vram::{Category, Line, Plan};
use serde::Deserialize;

pub(crate) use picture::{Paper, draw};
pub(crate) use table::{Table, why_not};

use crate::config::Config;
use crate::engine::{EngineError, Planning, dtype, lora, train_settings};

/// The model's shape, with the adapter that would be trained.
pub(crate) fn hollow(
    config: &Config,
    folder: &Path,
    adapter: Option<&Path>,
) -> Result<CausalLm, EngineError> {
    let shape = ModelConfig::read(folder)?;
    let mut model = CausalLm::hollow(shape, dtype(config), &Device::Cpu)?;
    match (adapter, lora(config)) {
        (Some(adapter), _) => model.load_adapter(adapter)?,
        (None, Some(lora)) => model.add_lora(lora, config.train.seed)?,
        (None, None) => {}
    }
    Ok(model)
}

/// What fits into `budget` bytes, for rows of `data.max_length` tokens. Nothing is measured, so
/// there is no speed.
pub(crate) fn table_for(
    config: &Config,
    folder: &Path,
    budget: Option<u64>,
) -> Result<Table, EngineError> {
    let model = hollow(config, folder, None)?;
    let mut planning = Planning::new(config, &model, None, None);
    planning.budget = budget;
    Ok(Table::of(&planning, &train_settings(config), None))
}

/// A plan as the database keeps it.
#[derive(Debug, Deserialize)]
struct Kept {
    lines: Vec<KeptLine>,
    resident: u64,
    train_peak: u64,
    eval_peak: u64,
    peak: u64,
    /// Earlier versions did not say.
    #[serde(default)]
    checkpoint: u64,
    budget: Option<u64>,
    fits: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct KeptLine {
    category: Category,
    bytes: u64,
    phase: String,
}

/// The plan of a run, without its formulas; `None` where another version wrote it otherwise.
pub(crate) fn kept_plan(json: serde_json::Value) -> Option<Plan> {
    let kept: Kept = serde_json::from_value(json).ok()?;
    let line = |KeptLine { category, bytes, phase }: KeptLine| {
        let phase = ["always", "train", "eval"].into_iter().find(|known| *known == phase)?;
        Some(Line { category, bytes, formula: "", phase })
    };
    Some(Plan {
        lines: kept.lines.into_iter().map(line).collect::<Option<_>>()?,
        resident: kept.resident,
        train_peak: kept.train_peak,
        eval_peak: kept.eval_peak,
        peak: kept.peak,
        checkpoint: kept.checkpoint,
        budget: kept.budget,
        fits: kept.fits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_that_was_kept_is_the_same_again() {
        let line = Line { category: Category::Weights, bytes: 5, formula: "", phase: "always" };
        let plan = Plan {
            lines: vec![line],
            resident: 5,
            train_peak: 9,
            eval_peak: 7,
            peak: 9,
            checkpoint: 4,
            budget: Some(10),
            fits: Some(true),
        };
        assert_eq!(kept_plan(json!(plan)), Some(plan.clone()));
        let mut odd = json!(plan);
        odd["lines"][0]["phase"] = json!("sometimes");
        assert_eq!(kept_plan(odd), None);
        assert_eq!(kept_plan(json!({ "peak": 3 })), None);
    }
}
