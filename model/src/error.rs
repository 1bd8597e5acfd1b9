use std::io;
use std::path::PathBuf;

use chandler_kernels::memory::lacking;

/// Why a model could not be read, built, run or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A file could not be written whole.
    #[error(transparent)]
    Write(#[from] chandler_durable::DurableError),

    /// A file is larger than its like may be.
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        max_bytes: u64,
    },

    /// Weights that are a pickle.
    #[error(
        "{} is a pickle, which is a program: to load it is to run whatever its maker wrote into \
         it, so chandler never does",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },

    /// A file where a folder should be.
    #[error("{} is a file, and a model is a folder", path.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
    },

    /// A link out of the model folder.
    #[error("{} is a link to {}, which is outside of the model folder", path.display(), target.display())]
    LinkOutside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },

    /// A JSON file of the model folder is not what it should be.
    #[error("{} is not valid JSON for its place: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: serde_json::Error,
    },

    /// `config.json` names an architecture that this crate does not have.
    #[error("{} has model_type {model_type:?}, which chandler does not know", path.display())]
    UnknownModelType {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        model_type: String,
    },

    /// `config.json` asks for something within a known architecture that this crate does not do.
    #[error("config.json: {key} = {value} is not supported")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        value: String,
    },

    /// `config.json` contradicts itself or leaves out what it must say.
    #[error("config.json: {key}: {reason}")]
    BadConfig {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// A tensor that the architecture needs is in none of the folder's files.
    #[error("{} has no tensor \"{name}\"", folder.display())]
    MissingTensor {
        /// The tensor's name.
        name: String,
        /// The model or adapter folder.
        folder: PathBuf,
    },

    /// A tensor has another shape than `config.json` says.
    #[error("tensor {name:?} in {} has shape {found:?}, where config.json makes it {expected:?}", file.display())]
    Misshapen {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        file: PathBuf,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },

    /// A tensor is stored in a type that weights do not come in.
    #[error("tensor {name:?} in {} is stored as {dtype}, not as f32, f16, bf16 or f64", file.display())]
    StoredDtype {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        file: PathBuf,
        /// The type's name.
        dtype: String,
    },

    /// A safetensors file is damaged, or was made to look as if it were one.
    #[error("{} is not a sound safetensors file: {reason}", path.display())]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A weight is NaN or infinite.
    #[error("tensor {name:?} in {} holds {count} values that are NaN or infinite", file.display())]
    NonFinite {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        file: PathBuf,
        /// How many of its values.
        count: usize,
    },

    /// A weight is larger than the type that it was to be written in holds.
    #[error("tensor {name:?} has values that {dtype} does not hold")]
    OutOfRange {
        /// The tensor's name.
        name: String,
        /// The type's name.
        dtype: &'static str,
    },

    /// An adapter that does not fit the model or uses what this crate does not do.
    #[error("adapter {}: {reason}", path.display())]
    BadAdapter {
        /// The adapter's folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// No module of the model has a name that was asked for.
    #[error(
        "lora.target_modules: this model has no linear layer called \"{name}\"; it has {known}"
    )]
    UnknownModule {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },

    /// A token id outside of the embedding table.
    #[error("token id {id} is outside of the model's vocabulary of {vocab_size}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab_size: usize,
    },

    /// More tokens than a KV cache has room for.
    #[error("{wanted} tokens do not fit a KV cache of {capacity}")]
    CacheFull {
        /// Tokens that were to stand in one row.
        wanted: usize,
        /// Tokens that one row can hold.
        capacity: usize,
    },

    /// There was too little memory for what was to be computed.
    #[error("out of memory{}", bytes.map_or_else(String::new, |bytes| format!(": {bytes} bytes could not be had")))]
    OutOfMemory {
        /// What was asked for, where that is known.
        bytes: Option<usize>,
    },

    /// candle could not compute it, such as for a shape that does not fit.
    #[error(transparent)]
    Tensor(candle_core::Error),
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        match lacking(&error) {
            Some(bytes) => Self::OutOfMemory { bytes },
            None => Self::Tensor(error),
        }
    }
}

impl ModelError {
    /// What the person who sees the error can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { source, path } if source.kind() == io::ErrorKind::NotFound => {
                return Some(format!(
                    "a model folder holds config.json, model.safetensors and tokenizer.json; look \
                     whether {} is the right path",
                    path.display()
                ));
            }
            Self::Read { .. } => "check that the file is there and readable by this user",
            Self::Write(error) => return error.hint(),
            Self::TooLarge { .. } => "compare it with the one that the model's authors published",
            Self::Pickle { .. } => {
                "look for the model's safetensors; if there are none, convert it where a stranger's \
                 program does no harm: AutoModelForCausalLM.from_pretrained(DIR)\
                 .save_pretrained(NEW_DIR) in transformers writes safetensors"
            }
            Self::NoFolder { .. } => "give the folder that holds config.json and model.safetensors",
            Self::LinkOutside { .. } => {
                "put the file itself into the folder (a hard link takes no room)"
            }
            Self::Json { .. } => "download the file again, or correct it at the place named",
            Self::UnknownModelType { .. } => {
                "supported are llama, mistral, qwen2, qwen3, gemma2 and gemma3_text"
            }
            Self::Unsupported { .. } => {
                "use a checkpoint without it (for quantized models: the original weights)"
            }
            Self::BadConfig { .. } => {
                "compare config.json with the one the model's authors published"
            }
            Self::MissingTensor { .. } | Self::Misshapen { .. } => {
                "the weights and config.json do not belong together, or a download is incomplete; \
                 download the folder again"
            }
            Self::StoredDtype { .. } => "convert the weights to bf16 or f32 first",
            Self::BadSafetensors { .. } => "the file was cut short or damaged; download it again",
            Self::NonFinite { .. } => {
                "these weights are broken; go back to an earlier snapshot or download them again"
            }
            Self::OutOfRange { .. } => "take the type bf16, or f32",
            Self::BadAdapter { .. } => "give an adapter that was trained for this very base model",
            Self::UnknownModule { .. } => "leave lora.target_modules unset to adapt all of them",
            Self::TokenOutOfVocabulary { .. } => {
                "the tokenizer does not belong to this model; use the one from its folder"
            }
            Self::CacheFull { .. } => "lower eval.max_new_tokens or shorten the prompt",
            Self::OutOfMemory { .. } => {
                "lower data.max_length or train.per_device_train_batch_size, or end other programs \
                 that use the memory"
            }
            Self::Tensor(_) => return None,
        };
        Some(hint.to_owned())
    }
}
