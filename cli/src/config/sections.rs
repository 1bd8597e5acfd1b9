//! The typed configuration: every section, key, default and meaning.
//!
//! Key names are those that users know from transformers and TRL.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::choices::{
    Dtype, LogFormat, LogRotation, LossOn, LrSchedulerType, OnBadLine, OnPressure, Optim,
    PackingStrategy, RampShape, TargetModules,
};
use super::keys::{Bounds, Key, section};
use super::values::{DeviceChoice, MemorySize, ModelPath};
use super::webhooks::Webhooks;

section! {
    /// The model that learns.
    ModelConfig in "model" {
        /// Folder with a Hugging Face model, or the id of one on the hub, such as
        /// `Qwen/Qwen3-0.6B`.
        path: Option<ModelPath> = None;
        /// Branch, tag or commit on the hub; unset takes the main branch.
        revision: Option<String> = None;
        /// The type to compute in. bf16 keeps f32 master weights.
        dtype: Dtype = Dtype::F32;
        /// Where it computes: on the first GPU where `chandler-cuda` finds one, else on the CPU; or on
        /// that which is named.
        device: DeviceChoice = DeviceChoice("auto".to_owned());
    }
}

section! {
    /// From records to rows of tokens.
    DataConfig in "data" {
        /// Longest row in tokens; what is longer is cut at its end.
        max_length: usize = 1024, Bounds::at_least(2.0);
        /// Lay several documents into one row, each with its own positions and attention.
        packing: bool = false;
        /// How packing lays documents into rows.
        packing_strategy: PackingStrategy = PackingStrategy::Bfd;
        /// Which tokens carry loss.
        loss_on: LossOn = LossOn::Completion;
        /// Shuffle the rows anew in every epoch; false keeps the order of the file.
        shuffle: bool = true;
        /// Seed of the shuffle, of the evaluation split and, without master weights, of the rounding.
        seed: u64 = 42;
        /// What happens when a line cannot be used.
        on_bad_line: OnBadLine = OnBadLine::Fail;
        /// Part of the rows held out for evaluation, from 0 (none) to below 1.
        eval_split: f64 = 0.0, Bounds::half_open(0.0, 1.0);
    }
}

section! {
    /// Settings of particular schedules, as transformers' `lr_scheduler_kwargs`.
    LrSchedulerKwargs in "train.lr_scheduler_kwargs" {
        /// cosine_with_min_lr: the rate at the end.
        min_lr: Option<f64> = None, Bounds::at_least(0.0);
        /// cosine_with_min_lr: the rate at the end as a part of the peak rate.
        min_lr_rate: Option<f64> = None, Bounds::between(0.0, 1.0);
        /// cosine, cosine_with_min_lr, warmup_stable_decay: cosine waves in the decay; 0.5 falls
        /// once from the peak to the floor.
        num_cycles: f64 = 0.5, Bounds::above(0.0);
        /// warmup_stable_decay: steps of the decay.
        num_decay_steps: Option<usize> = None, Bounds::at_least(1.0);
        /// warmup_stable_decay: steps at the peak rate; unset takes what warmup and decay leave.
        num_stable_steps: Option<usize> = None;
        /// warmup_stable_decay: the shape of the warmup.
        warmup_type: RampShape = RampShape::Linear;
        /// warmup_stable_decay: the shape of the decay.
        decay_type: RampShape = RampShape::Cosine;
        /// warmup_stable_decay: the floor as a part of the peak rate.
        min_lr_ratio: f64 = 0.0, Bounds::between(0.0, 1.0);
    }
}

section! {
    /// Optimizer, schedule, batch and checkpoints.
    TrainConfig in "train" {
        /// Peak learning rate of AdamW.
        learning_rate: f64 = 2e-5, Bounds::at_least(0.0);
        /// Decay of the first moment.
        adam_beta1: f64 = 0.9, Bounds::half_open(0.0, 1.0);
        /// Decay of the second moment.
        adam_beta2: f64 = 0.999, Bounds::half_open(0.0, 1.0);
        /// Added to the root of the second moment.
        adam_epsilon: f64 = 1e-8, Bounds::above(0.0);
        /// Decoupled weight decay, on matrices only.
        weight_decay: f64 = 0.0, Bounds::at_least(0.0);
        /// Largest global gradient norm; larger gradients are scaled down. 0 turns clipping off.
        max_grad_norm: f64 = 1.0, Bounds::at_least(0.0);
        /// Steps of warmup; above 0 it takes precedence over `warmup_ratio`.
        warmup_steps: usize = 0;
        /// Warmup as a part of all steps.
        warmup_ratio: f64 = 0.0, Bounds::between(0.0, 1.0);
        /// The course of the learning rate.
        lr_scheduler_type: LrSchedulerType = LrSchedulerType::Linear;
        /// Optimizer steps in all; -1 goes by `num_train_epochs`.
        max_steps: i64 = -1, Bounds::at_least(-1.0);
        /// Passes over the data; a fraction ends within a pass.
        num_train_epochs: f64 = 3.0, Bounds::above(0.0);
        /// Rows in a micro-batch.
        per_device_train_batch_size: usize = 8, Bounds::at_least(1.0);
        /// Micro-batches in one optimizer step.
        gradient_accumulation_steps: usize = 1, Bounds::at_least(1.0);
        /// Seed of the first values of an adapter. What else is random in training goes by
        /// `data.seed`.
        seed: u64 = 42;
        /// Steps between checkpoints; 0 keeps only the one at the end.
        save_steps: usize = 500;
        /// Checkpoints that `chandler train` keeps in its output folder; unset keeps all. The
        /// daemon goes by `daemon.keep_checkpoints`.
        save_total_limit: Option<usize> = None, Bounds::at_least(1.0);
        /// Keep only each block's input and compute the rest again in the backward pass: less
        /// memory, about a sixth more time.
        gradient_checkpointing: bool = false;
        /// Memory for the activations that wait for the backward pass: as many blocks as fit keep
        /// theirs, the others are computed again. Unset keeps all.
        activation_memory: Option<MemorySize> = None;
        /// The optimizer.
        optim: Optim = Optim::AdamW;
        /// With bf16: keep f32 weights beside those that the model computes with. false trains the
        /// bf16 weights themselves by stochastic rounding, with gradients in bf16.
        master_weights: bool = true;
        /// Move each block's weights as soon as its gradients are there: gradients never exist all
        /// at once. Clipping is then by parameter, and there is one micro-batch a step.
        optimizer_in_backward: bool = false;
        /// Steps between those that measure how large the gradient, the update and the weights of each
        /// layer are, for the dashboard; the first step is one of them, and 0 measures none.
        layer_norms_steps: usize = 50;
    } with
    /// Settings of particular schedules.
    lr_scheduler_kwargs: LrSchedulerKwargs
}

section! {
    /// Low-rank adapters. `r = 0` trains all weights.
    LoraConfig in "lora" {
        /// Rank of the adapters; 0 trains all weights.
        r: usize = 0;
        /// Scale of the adapters: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        lora_alpha: f64 = 16.0, Bounds::above(0.0);
        /// Scale by the square root of the rank.
        use_rslora: bool = false;
        /// Which linear layers get adapters.
        target_modules: TargetModules = TargetModules::AllLinear;
    }
}

section! {
    /// Evaluation by generating, before the first step, every `eval_steps` and at the end.
    EvalConfig in "eval" {
        /// Steps between evaluations; 0 turns evaluation off.
        eval_steps: usize = 500;
        /// Most tokens generated for one prompt.
        max_new_tokens: usize = 2048, Bounds::at_least(1.0);
        /// Sampling temperature; 0 always takes the most probable token.
        temperature: f64 = 0.0, Bounds::at_least(0.0);
        /// Sample only from this many most probable tokens.
        top_k: Option<usize> = None, Bounds::at_least(1.0);
        /// Sample only from the most probable tokens whose probabilities sum to this.
        top_p: Option<f64> = None, Bounds::above_up_to(0.0, 1.0);
        /// Sample only from tokens at least this probable, relative to the most probable one.
        min_p: Option<f64> = None, Bounds::between(0.0, 1.0);
        /// Temperature at the end of a ramp of `temperature_ramp_tokens` that begins at `temperature`;
        /// unset keeps it constant.
        temperature_end: Option<f64> = None, Bounds::above(0.0);
        /// Tokens over which the temperature goes to `temperature_end`.
        temperature_ramp_tokens: usize = 256, Bounds::at_least(1.0);
        /// Factor against tokens that have occurred; 1 is off.
        repetition_penalty: f64 = 1.0, Bounds::above(0.0);
        /// Taken from a token's score for each time that the answer has it; 0 is off.
        frequency_penalty: f64 = 0.0, Bounds::between(-2.0, 2.0);
        /// Taken from the score of every token that the answer has; 0 is off.
        presence_penalty: f64 = 0.0, Bounds::between(-2.0, 2.0);
        /// No sequence of so many tokens occurs twice; 0 is off.
        no_repeat_ngram_size: usize = 0;
        /// Tokens before an answer may end.
        min_new_tokens: usize = 0;
        /// Generation ends where one of these texts appears.
        stop: Vec<String> = Vec::new();
        /// Seed of the sampling.
        seed: u64 = 42;
        /// How many held-out prompts are answered at each evaluation.
        samples: usize = 8;
        /// Prompts that are answered side by side.
        batch_size: usize = 8, Bounds::at_least(1.0);
        /// System message put before each prompt.
        system: Option<String> = None;
        /// JSONL file with prompts (and, for scores, completions) in place of held-out rows.
        prompts: Option<PathBuf> = None;
        /// How these answers are scored: exact_match, contains, regex, json_valid, json_equal,
        /// numeric, rouge_l or chrf. Eval sets have scorers of their own.
        scorer: String = "exact_match".to_owned();
        /// Which metric says how good a checkpoint is: loss, perplexity, token_accuracy or
        /// exact_match on held-out rows, or SET/METRIC of an eval set.
        metric_for_best_model: String = "loss".to_owned();
        /// The model that a job leaves is the best of its evaluations by that metric, not the last.
        load_best_model_at_end: bool = false;
        /// A job ends after so many evaluations in a row without a better one; unset goes on.
        early_stopping_patience: Option<usize> = None, Bounds::at_least(1.0);
        /// How much better one must be to count.
        early_stopping_threshold: f64 = 0.0, Bounds::at_least(0.0);
        /// Ask the base model, too, what an eval set asks that it was never asked: scores stand beside
        /// its. It is loaded before a job for that, where there is room for it beside the newest model.
        compare_to_base: bool = true;
        /// At the end of a job, write the questions of the eval sets that were answered wrongly
        /// as a new training file into the inbox, once for each job.
        requeue_wrong: bool = false;
    }
}

section! {
    /// How much memory may be used, and what happens when it runs short.
    MemoryConfig in "memory" {
        /// Most memory for the model, its training and its evaluations; what would go beyond it is
        /// refused and done in smaller pieces. Unset goes by what the machine has.
        limit: Option<MemorySize> = None;
        /// Memory of the machine that is left to other programs.
        reserve: Option<MemorySize> = None;
        /// What becomes of an evaluation for which there is too little.
        on_pressure: OnPressure = OnPressure::Adapt;
    }
}

section! {
    /// What reading a model's tokenizer and chat template and a training file may take. They are
    /// read in a process of their own, which is ended where it goes beyond.
    LimitsConfig in "limits" {
        /// Most memory of that process.
        worker_memory: MemorySize = MemorySize("4GiB".to_owned());
        /// Largest file that is taken from the inbox.
        max_file: MemorySize = MemorySize("64GiB".to_owned());
        /// Longest line of a training file; a longer one cannot be used.
        max_line: MemorySize = MemorySize("16MiB".to_owned());
        /// Seconds in which a record must be done, and the model's files be loaded.
        stall_seconds: f64 = 60.0, Bounds::between(0.1, 86_400.0);
        /// Seconds of CPU time that each MiB of training files may take, beside `stall_seconds` for
        /// each CPU.
        cpu_seconds_per_mib: f64 = 60.0, Bounds::between(0.0, 86_400.0);
    }
}

section! {
    /// The inbox, its attempts, and what is kept.
    DaemonConfig in "daemon" {
        /// Seconds between looks into the inbox.
        poll_seconds: f64 = 1.0, Bounds::between(0.01, 3600.0);
        /// Seconds for which a file's size and time must stand still before it is taken.
        settle_seconds: f64 = 2.0, Bounds::between(0.0, 3600.0);
        /// Attempts at a file before it goes to `failed/`.
        max_attempts: u64 = 3, Bounds::between(1.0, 1000.0);
        /// Newest checkpoints that are kept.
        keep_checkpoints: usize = 3, Bounds::at_least(1.0);
        /// Best checkpoints by evaluation loss that are kept besides.
        keep_best: usize = 1;
        /// Snapshots that are kept, one a day; 0 makes none.
        keep_snapshots: usize = 7;
        /// Days after which the steps and answers of runs that are over, and events, are deleted from
        /// the database when a job is done; 0 keeps them. Days on which no daemon ran do not count.
        /// Evaluations and their scores stay.
        keep_days: u64 = 0, Bounds::between(0.0, 36_500.0);
        /// Seconds without a sign of life, such as a step or an answered token, after which the
        /// daemon is taken to hang and is started again; 0 waits for ever.
        hang_seconds: f64 = 3600.0, Bounds::between(0.0, 1e9);
        /// Whether the daemon is started again when it was killed or has crashed.
        restart: bool = true;
        /// GiB that must stay free on the disk of the state directory.
        min_free_gib: f64 = 2.0, Bounds::at_least(0.0);
        /// Program and arguments that are run when the queue has become empty, such as one that puts
        /// the next file into the inbox; none where the list is empty.
        when_idle: Vec<String> = Vec::new();
        /// Least seconds from one start of it to the next.
        when_idle_seconds: f64 = 300.0, Bounds::between(0.1, 31_536_000.0);
        /// Seconds after which it is ended.
        when_idle_limit_seconds: f64 = 3600.0, Bounds::between(0.1, 31_536_000.0);
    }
}

section! {
    /// What is told of as out of the ordinary, in `status`, in the log and to `notify`.
    AlertsConfig in "alerts" {
        /// Whether runs are watched at all.
        enabled: bool = true;
        /// A loss above the median of the last 64 by more than so many of their spreads; 0 tells
        /// none.
        loss_spike: f64 = 10.0, Bounds::at_least(0.0);
        /// Tokens a second below the run's median by more than this part of it; 0 tells none.
        throughput_drop: f64 = 0.5, Bounds::half_open(0.0, 1.0);
        /// Seconds that it must last.
        throughput_seconds: f64 = 60.0, Bounds::between(0.0, 31_536_000.0);
        /// A figure of an evaluation worse than the run's best by more than this part of it; 0 tells
        /// none.
        eval_regression: f64 = 0.1, Bounds::at_least(0.0);
        /// No step for so many times the usual time of one, neither paused nor evaluating; 0 tells
        /// none.
        stuck: f64 = 20.0, Bounds::at_least(0.0);
        /// Seconds that it must last.
        stuck_seconds: f64 = 300.0, Bounds::between(0.0, 31_536_000.0);
    }
}

section! {
    /// Who is told of what happens.
    NotifyConfig in "notify" {
        /// Whether the desktop shows when a job is done or has failed, and alerts.
        desktop: bool = false;
        /// Addresses that are sent what happens: `[[notify.webhooks]]` with `url`, and where wanted
        /// `events` (all), `secret` (unsigned) and `format` (`json`, `slack`, `discord`, `ntfy`).
        webhooks: Webhooks = Webhooks::default();
    }
}

section! {
    /// The daemon's page and API for the browser.
    HttpConfig in "http" {
        /// Whether the daemon listens at all; `chandler dashboard` prints the address with the token
        /// that opens it.
        enabled: bool = true;
        /// The address to listen on. One that others can reach lets them try; what is sent is not
        /// encrypted, the token included.
        address: String = "127.0.0.1".to_owned();
        /// The port; where it is taken the daemon says so and takes a free one, as with 0.
        port: u64 = 7917, Bounds::between(0.0, 65_535.0);
        /// Names by which the page may be asked for besides `localhost` and the address, such as
        /// that of a proxy before it.
        hosts: Vec<String> = Vec::new();
    }
}

section! {
    /// Answers to requests in the form of OpenAI's API: by `chandler serve`, and by a daemon that
    /// works on no job.
    ServeConfig in "serve" {
        /// Whether the daemon answers them, where its HTTP server does; the model is loaded with the
        /// first request.
        enabled: bool = true;
        /// Seconds without a request after which the daemon lets go of the model. A job that is
        /// ready has it let go at once.
        idle_seconds: f64 = 300.0, Bounds::at_least(0.0);
        /// Seconds that an answer may still take when a job is ready, or the server ends.
        grace_seconds: f64 = 5.0, Bounds::between(0.0, 3600.0);
        /// Most tokens of one answer, also where the request asks for more.
        max_new_tokens: usize = 2048, Bounds::at_least(1.0);
        /// Requests that may wait for their turn.
        queue: usize = 16, Bounds::between(0.0, 1024.0);
    }
}

section! {
    /// What is logged, and where.
    LogConfig in "log" {
        /// error, warn, info, debug or trace, or a filter such as `info,chandler_trainer=debug`.
        level: String = "info".to_owned();
        /// What the terminal shows; the files in `logs/` are always JSON lines.
        format: LogFormat = LogFormat::Human;
        /// When a new file is begun in `logs/`.
        rotation: LogRotation = LogRotation::Daily;
        /// Log files that are kept.
        keep_files: usize = 14, Bounds::at_least(1.0);
        /// Whether the first prompts and answers of an evaluation are logged. No other line of the
        /// log holds text of a record; the database keeps samples either way.
        samples: bool = false;
        /// Whether each run writes event files for TensorBoard, samples included: the daemon into
        /// `runs/` of the state directory, `chandler train` into `runs/` of its output folder.
        tensorboard: bool = false;
    }
}

/// The whole configuration, resolved and within its bounds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The model that learns.
    pub model: ModelConfig,
    /// From records to rows of tokens.
    pub data: DataConfig,
    /// Optimizer, schedule, batch and checkpoints.
    pub train: TrainConfig,
    /// Low-rank adapters.
    pub lora: LoraConfig,
    /// Evaluation by generating.
    pub eval: EvalConfig,
    /// How much memory may be used.
    pub memory: MemoryConfig,
    /// What reading files of others may take.
    pub limits: LimitsConfig,
    /// The inbox, its attempts, and what is kept.
    pub daemon: DaemonConfig,
    /// What is told of as out of the ordinary.
    pub alerts: AlertsConfig,
    /// Who is told of what happens.
    pub notify: NotifyConfig,
    /// The daemon's page and API for the browser.
    pub http: HttpConfig,
    /// Answers to requests in the form of OpenAI's API.
    pub serve: ServeConfig,
    /// What is logged, and where.
    pub log: LogConfig,
}

/// A section as the reference lists it.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Dotted path.
    pub path: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

macro_rules! listed {
    ($($section:ident),+ $(,)?) => {
        &[$(Section {
            path: $section::PATH,
            about: $section::ABOUT,
            keys: $section::KEYS,
        }),+]
    };
}

/// Every section, in the order of the reference.
pub const SECTIONS: &[Section] = listed![
    ModelConfig,
    DataConfig,
    TrainConfig,
    LrSchedulerKwargs,
    LoraConfig,
    EvalConfig,
    MemoryConfig,
    LimitsConfig,
    DaemonConfig,
    AlertsConfig,
    NotifyConfig,
    HttpConfig,
    ServeConfig,
    LogConfig,
];

/// Every key, in the order of the reference.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// The key with this dotted path.
pub fn key(path: &str) -> Option<&'static Key> {
    let (section, name) = path.rsplit_once('.')?;
    keys().find(|key| key.section == section && key.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every leaf of the serialized defaults, as dotted paths.
    fn leaves(prefix: &str, value: &serde_json::Value, into: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, inner) in map {
                    let path =
                        if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    leaves(&path, inner, into);
                }
            }
            _ => {
                into.insert(prefix.to_owned());
            }
        }
    }

    #[test]
    fn the_table_of_keys_is_the_struct() {
        let mut from_struct = BTreeSet::new();
        leaves("", &serde_json::to_value(Config::default()).unwrap(), &mut from_struct);
        let from_table: BTreeSet<String> = keys().map(Key::path).collect();
        assert_eq!(from_struct, from_table);
        assert_eq!(from_table.len(), keys().count(), "no key stands twice");
    }

    #[test]
    fn environment_names_are_unambiguous() {
        let names: BTreeSet<String> = keys().map(|key| key.path().replace('.', "_")).collect();
        assert_eq!(names.len(), keys().count());
    }

    #[test]
    fn every_key_says_what_it_means() {
        for key in keys() {
            assert!(key.meaning().ends_with('.'), "{}: {:?}", key.path(), key.meaning());
        }
    }
}
