//! `chandler bench`: how fast this machine trains and generates, with fresh weights and no data.

mod checkpoint;
mod draws;
mod flops;
mod generate;
mod kernels;
mod plan;
mod process;
mod report;
mod shape;
mod train;

use candle_core::{DType, Device};
use chandler_kernels::profile;
use chandler_model::{CausalLm, LoraConfig, ModelConfig, ModelError};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

pub(super) use self::flops::train_flops_per_token;
pub(super) use self::kernels::product_peak;
use self::shape::Shape;
use crate::config::Place;
use crate::engine::{EngineError, open_device};
use crate::exit::Exit;
use crate::failure::Failure;

/// What is measured.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Optimizer steps: tokens/s, memory, time by op
    Train(train::TrainArgs),
    /// Greedy answers: tokens/s, memory
    Generate(generate::GenerateArgs),
    /// Each op alone, at the sizes that a model uses
    Kernels(kernels::KernelsArgs),
    /// Training with checkpoints that are written meanwhile beside training without any
    Checkpoint(checkpoint::CheckpointArgs),
    /// The memory plan beside what is allocated, for models and settings drawn at random
    Plan(plan::PlanArgs),
}

pub(super) fn bench(command: &BenchCommand) -> Result<Exit, Failure> {
    match command {
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Generate(args) => generate::generate(args),
        BenchCommand::Kernels(args) => kernels::kernels(args),
        BenchCommand::Checkpoint(args) => checkpoint::checkpoint(args),
        BenchCommand::Plan(args) => plan::run(args),
    }
}

/// Which model.
#[derive(Debug, Args)]
struct ModelArgs {
    /// The model: small, qwen3-0.6b, or a config.json
    #[arg(long, value_name = "NAME|CONFIG.json", default_value = "small")]
    shape: Shape,
    /// The type to compute in
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    dtype: Precision,
    /// Train all weights, or an adapter
    #[arg(long, value_enum, default_value_t = Mode::Full)]
    mode: Mode,
    /// Where: auto, cpu, cuda or such as cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = place)]
    device: Place,
}

fn place(text: &str) -> Result<Place, String> {
    Place::from_text(text).ok_or_else(|| "auto, cpu, cuda or such as cuda:1 is wanted".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    Bf16,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// All weights.
    Full,
    /// LoRA of rank 8 and alpha 16 on all seven projections of each block.
    Lora,
}

const SEED: u64 = 1;

impl ModelArgs {
    /// The model, with fresh weights.
    fn build(&self) -> Result<CausalLm, Failure> {
        let (config, device) = (self.shape.config()?, open_device(self.device, None)?);
        Ok(fresh(config, self.dtype, self.mode, &device).map_err(EngineError::Model)?)
    }
}

/// A model with fresh weights, and an adapter where that is what trains.
fn fresh(
    config: ModelConfig,
    dtype: Precision,
    mode: Mode,
    device: &Device,
) -> Result<CausalLm, ModelError> {
    let mut model = CausalLm::fresh(config, SEED, dtype.dtype(), device)?;
    if mode == Mode::Lora {
        let target_modules = vec![];
        let lora = LoraConfig { r: 8, lora_alpha: 16.0, use_rslora: false, target_modules };
        model.add_lora(lora, SEED)?;
    }
    Ok(model)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 1 => Ok(count),
        _ => Err("a number from 1 is wanted".to_owned()),
    }
}

/// The ops of what `run` does, and what it returns.
fn profiled<T>(
    run: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Vec<profile::Row>), Failure> {
    profile::take();
    profile::enable(true);
    let result = run();
    profile::enable(false);
    Ok((result?, profile::take()))
}

/// Token ids as a trained text has them: few of all that there are, and any after any. Value `i` of
/// a stream depends on nothing else.
fn token_ids(vocab_size: usize, stream: u64, count: usize) -> Vec<u32> {
    const ALPHABET: u64 = 256;
    let draw = |stream: u64, i: u64| {
        let mixed = (stream << 40 ^ i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    };
    let letter = |i: u64| (draw(0, i) % vocab_size as u64) as u32;
    (0..count as u64).map(|i| letter(draw(stream + 1, i) % ALPHABET)).collect()
}

/// The middle value; of an even number, the mean of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_of_an_alphabet_within_the_vocabulary() {
        let ids = token_ids(5000, 0, 4096);
        assert!(ids.iter().all(|id| *id < 5000));
        let letters: BTreeSet<u32> = ids.iter().copied().collect();
        assert!((200..=256).contains(&letters.len()), "{}", letters.len());
        assert_ne!(ids, token_ids(5000, 1, 4096));
        assert_eq!(ids[..100], token_ids(5000, 0, 100));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
