//! Configuration: defaults ← `chandler.toml` ← `CHANDLER_*` ← flags and `--set`, checked once.

mod choices;
mod error;
mod eval_set;
pub(crate) mod keys;
mod layers;
mod load;
mod reference;
mod sections;
mod values;
mod webhooks;

pub use choices::{
    Dtype, LogFormat, LogRotation, LossOn, LrSchedulerType, OnBadLine, OnPressure, Optim,
    PackingStrategy, RampShape, TargetModules,
};
pub use error::{ConfigError, Origin, Problem};
pub use eval_set::{EVAL_SET_KEYS, EvalSetConfig, SetScorer};
pub use keys::{Bounds, ConfigValue, Key, Kind};
pub use layers::FlagValue;
pub use load::{ConfigSources, ResolvedConfig};
pub use reference::{
    as_toml, list as reference_list, markdown as reference_markdown, template as config_template,
};
pub use sections::{
    AlertsConfig, Config, DaemonConfig, DataConfig, EvalConfig, HttpConfig, LimitsConfig,
    LogConfig, LoraConfig, LrSchedulerKwargs, MemoryConfig, ModelConfig, NotifyConfig, SECTIONS,
    Section, ServeConfig, TrainConfig, key, keys,
};
pub use values::{DeviceChoice, MemorySize, ModelPath, Place};
pub use webhooks::{Format, Secret, Topic, Webhook, Webhooks};
