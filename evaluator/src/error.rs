use chandler_model::ModelError;
use chandler_vram::{Bytes, Category, Shortage};

/// Why an evaluation has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A prompt without a token.
    #[error("prompt {index} has no tokens")]
    EmptyPrompt {
        /// Which.
        index: usize,
    },

    /// Somebody asked it to stop.
    #[error("the evaluation was stopped")]
    Stopped,

    /// Memory that was entered during the evaluation is still there.
    #[error("the evaluation left {} of {category} behind", Bytes(*bytes))]
    Leak {
        /// What it is for.
        category: Category,
        /// How much more than before.
        bytes: u64,
    },

    /// Too little memory, however the evaluation is cut.
    #[error("{0}")]
    OutOfMemory(Box<Shortage>),

    /// The model could not compute it.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<candle_core::Error> for EvalError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl EvalError {
    /// Whether memory was lacking, which asking for less may help.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory(_) | Self::Model(ModelError::OutOfMemory { .. }))
    }

    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::EmptyPrompt { .. } => Some("leave empty prompts out".to_owned()),
            Self::Stopped => None,
            Self::Leak { .. } => Some("this is a fault of chandler; please report it".to_owned()),
            Self::OutOfMemory(_) => Some(
                "lower eval.max_new_tokens or eval.batch_size, or end other programs that use the \
                 memory"
                    .to_owned(),
            ),
            Self::Model(error) => error.hint(),
        }
    }
}
