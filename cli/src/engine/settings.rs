//! The configuration in the words of the library crates.

use candle_core::DType;
use chandler_data::{DataOptions, LossOn, OnBadLine, Packing};
use chandler_evaluator::{GenerateOptions, SamplingOptions, TemperatureRamp};
use chandler_model::LoraConfig;
use chandler_trainer::{MomentsDtype, Ramp, Schedule, TrainSettings};

use crate::config::{self, Config, EvalConfig};

pub(crate) fn dtype(config: &Config) -> DType {
    match config.model.dtype {
        config::Dtype::F32 => DType::F32,
        config::Dtype::Bf16 => DType::BF16,
    }
}

pub(crate) fn data_options(config: &Config, vocab_size: Option<usize>) -> DataOptions {
    let data = &config.data;
    DataOptions {
        max_length: data.max_length,
        loss_on: match data.loss_on {
            config::LossOn::Completion => LossOn::Completion,
            config::LossOn::Assistant => LossOn::Assistant,
            config::LossOn::All => LossOn::All,
        },
        packing: data.packing.then_some(match data.packing_strategy {
            config::PackingStrategy::Bfd => Packing::Bfd,
            config::PackingStrategy::Wrapped => Packing::Wrapped,
        }),
        on_bad_line: match data.on_bad_line {
            config::OnBadLine::Fail => OnBadLine::Fail,
            config::OnBadLine::Skip => OnBadLine::Skip,
        },
        max_line_bytes: config.limits.max_line.bytes().unwrap_or(u64::MAX >> 1) as usize,
        vocab_size,
    }
}

pub(crate) fn train_settings(config: &Config) -> TrainSettings {
    let train = &config.train;
    TrainSettings {
        learning_rate: train.learning_rate,
        adam_beta1: train.adam_beta1,
        adam_beta2: train.adam_beta2,
        adam_epsilon: train.adam_epsilon,
        weight_decay: train.weight_decay,
        max_grad_norm: train.max_grad_norm,
        lr_scheduler_type: schedule(config),
        warmup_steps: train.warmup_steps as u64,
        warmup_ratio: train.warmup_ratio,
        max_steps: u64::try_from(train.max_steps).ok().filter(|steps| *steps > 0),
        num_train_epochs: train.num_train_epochs,
        per_device_train_batch_size: train.per_device_train_batch_size,
        gradient_accumulation_steps: train.gradient_accumulation_steps,
        seed: config.data.seed,
        shuffle: config.data.shuffle,
        kept_blocks: train.gradient_checkpointing.then_some(0),
        activation_budget: train.activation_memory.as_ref().and_then(config::MemorySize::bytes),
        moments: match train.optim {
            config::Optim::AdamW => MomentsDtype::F32,
            config::Optim::AdamW8bit => MomentsDtype::Blockwise8,
        },
        master_weights: train.master_weights || config.model.dtype == config::Dtype::F32,
        optimizer_in_backward: train.optimizer_in_backward,
        layer_norms_steps: Some(train.layer_norms_steps as u64),
    }
}

fn schedule(config: &Config) -> Schedule {
    let train = &config.train;
    let kwargs = &train.lr_scheduler_kwargs;
    let share =
        |floor: f64| if train.learning_rate > 0.0 { floor / train.learning_rate } else { 0.0 };
    let num_cycles = kwargs.num_cycles;
    match train.lr_scheduler_type {
        config::LrSchedulerType::Constant => Schedule::Constant,
        config::LrSchedulerType::ConstantWithWarmup => Schedule::ConstantWithWarmup,
        config::LrSchedulerType::Linear => Schedule::Linear,
        config::LrSchedulerType::Cosine => Schedule::Cosine { num_cycles, min_lr_rate: 0.0 },
        config::LrSchedulerType::CosineWithMinLr => Schedule::Cosine {
            num_cycles,
            min_lr_rate: kwargs.min_lr_rate.or(kwargs.min_lr.map(share)).unwrap_or(0.0),
        },
        config::LrSchedulerType::WarmupStableDecay => Schedule::Wsd {
            num_decay_steps: kwargs.num_decay_steps.map_or_else(
                || (train.max_steps.max(10) as u64).div_ceil(10),
                |steps| steps as u64,
            ),
            num_stable_steps: kwargs.num_stable_steps.map(|steps| steps as u64),
            warmup_type: ramp(kwargs.warmup_type),
            decay_type: ramp(kwargs.decay_type),
            min_lr_ratio: kwargs.min_lr_ratio,
            num_cycles,
        },
    }
}

fn ramp(shape: config::RampShape) -> Ramp {
    match shape {
        config::RampShape::Linear => Ramp::Linear,
        config::RampShape::Cosine => Ramp::Cosine,
        config::RampShape::OneMinusSqrt => Ramp::OneMinusSqrt,
    }
}

/// `None` trains all weights.
pub(crate) fn lora(config: &Config) -> Option<LoraConfig> {
    let lora = &config.lora;
    (lora.r > 0).then(|| LoraConfig {
        r: lora.r,
        lora_alpha: lora.lora_alpha,
        use_rslora: lora.use_rslora,
        target_modules: match &lora.target_modules {
            config::TargetModules::AllLinear => vec![],
            config::TargetModules::Names(names) => names.clone(),
        },
    })
}

pub(crate) fn generate_options(eval: &EvalConfig, stop_ids: Vec<u32>) -> GenerateOptions {
    let tokens = eval.temperature_ramp_tokens;
    GenerateOptions {
        max_new_tokens: eval.max_new_tokens,
        stop_ids,
        sampling: SamplingOptions {
            temperature: eval.temperature,
            temperature_ramp: eval.temperature_end.map(|to| TemperatureRamp { to, tokens }),
            top_k: eval.top_k,
            top_p: eval.top_p,
            min_p: eval.min_p,
            repetition_penalty: eval.repetition_penalty,
            frequency_penalty: eval.frequency_penalty,
            presence_penalty: eval.presence_penalty,
            no_repeat_ngram_size: eval.no_repeat_ngram_size,
            min_new_tokens: eval.min_new_tokens,
            seed: eval.seed,
            ..SamplingOptions::default()
        },
        batch_size: eval.batch_size,
    }
}
