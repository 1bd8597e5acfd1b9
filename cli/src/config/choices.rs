//! The words that configuration keys choose from.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::keys::{ConfigValue, Kind, choice};

choice! {
    /// The type that a model computes in.
    Dtype {
        /// 32-bit floating point throughout.
        F32 = "f32" | "float32",
        /// bfloat16 compute, f32 master weights and statistics.
        Bf16 = "bf16" | "bfloat16",
    }
}

choice! {
    /// The optimizer.
    Optim {
        /// AdamW with f32 moments: 8 bytes a trained parameter.
        AdamW = "adamw" | "adamw_torch",
        /// AdamW with the moments of matrices in 8 bits: 2 bytes a trained parameter.
        AdamW8bit = "adamw_8bit",
    }
}

choice! {
    /// How documents are laid into rows of `max_length` tokens.
    PackingStrategy {
        /// Best fit decreasing: whole documents, as few rows as possible.
        Bfd = "bfd",
        /// One long stream, cut every `max_length` tokens.
        Wrapped = "wrapped",
    }
}

choice! {
    /// Which tokens carry loss.
    LossOn {
        /// The completion, or the last assistant turn.
        Completion = "completion",
        /// Every assistant turn.
        Assistant = "assistant",
        /// Every token.
        All = "all",
    }
}

choice! {
    /// What happens when a line of a training file cannot be used.
    OnBadLine {
        /// The file is refused, with a report by line.
        Fail = "fail",
        /// The line is left out and counted.
        Skip = "skip",
    }
}

choice! {
    /// The learning-rate schedules, named as transformers names them.
    LrSchedulerType {
        /// The peak rate throughout.
        Constant = "constant",
        /// Linear warmup, then the peak rate.
        ConstantWithWarmup = "constant_with_warmup",
        /// Linear warmup, then linear decay to zero.
        Linear = "linear",
        /// Linear warmup, then a half cosine to zero.
        Cosine = "cosine",
        /// As `cosine`, down to a floor.
        CosineWithMinLr = "cosine_with_min_lr",
        /// Warmup, a stable stretch, then decay.
        WarmupStableDecay = "warmup_stable_decay" | "wsd",
    }
}

choice! {
    /// The shape of a stretch of warmup or decay.
    RampShape {
        /// A straight line.
        Linear = "linear",
        /// A half cosine.
        Cosine = "cosine",
        /// One minus the square root of the part done.
        OneMinusSqrt = "1-sqrt",
    }
}

choice! {
    /// What becomes of an evaluation for which there is too little memory.
    OnPressure {
        /// Fewer prompts side by side, then shorter answers.
        Adapt = "adapt",
        /// The next one that is due is the next one there is.
        Postpone = "postpone",
        /// The run ends.
        Stop = "stop",
    }
}

choice! {
    /// What the terminal shows.
    LogFormat {
        /// Lines for people, with colour where the terminal has it.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

choice! {
    /// When a log file is closed and a new one begun.
    LogRotation {
        /// Every day.
        Daily = "daily",
        /// Every hour.
        Hourly = "hourly",
        /// Never.
        Never = "never",
    }
}

/// Which linear layers get LoRA matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer of the blocks, as peft's `all-linear`.
    AllLinear,
    /// The layers with these names.
    Names(Vec<String>),
}

impl TargetModules {
    const ALL_LINEAR: &'static str = "all-linear";
}

impl ConfigValue for TargetModules {
    const KIND: Kind = Kind::ListOr(&[Self::ALL_LINEAR]);
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str(Self::ALL_LINEAR),
            Self::Names(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Word(String),
            Names(Vec<String>),
        }
        match Written::deserialize(deserializer)? {
            Written::Word(word) if word == Self::ALL_LINEAR => Ok(Self::AllLinear),
            Written::Word(name) => Ok(Self::Names(vec![name])),
            Written::Names(names) => Ok(Self::Names(names)),
        }
    }
}
