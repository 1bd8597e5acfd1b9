//! Which model is served, and what is known of it before its weights are loaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chandler_data::{DataError, Tokenizer};
use chandler_durable::is_there;
use chandler_model::ModelConfig;
use serde_json::{Value, json};

use super::refusal::Refusal;
use crate::config::Config;
use crate::engine::{EngineError, cached_model_folder};
use crate::state_dir::StateDir;
use crate::worker::Standing;

/// The name that stands for whatever is served, and is the own name of what the daemon trained.
pub(crate) const ANY: &str = "chandler";

/// A model on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) folder: PathBuf,
    pub(crate) adapter: Option<PathBuf>,
    /// What clients call it.
    pub(crate) name: String,
}

/// Says which model is served now.
pub(crate) type Source = Arc<dyn Fn() -> Result<Offer, Refusal> + Send + Sync>;

/// What a model is called that the user names in this way: the id on the hub, or the last part of
/// the path.
pub(crate) fn name_of(path: &str) -> String {
    let last = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    match last {
        Some(last) if Path::new(path).exists() => last,
        _ => path.to_owned(),
    }
}

/// The newest model of a state directory, once there is one.
pub(crate) fn newest(state: &StateDir) -> Result<Option<Offer>, EngineError> {
    let folder = state.model();
    let is_one = is_there(&folder.join("config.json"))?;
    Ok(is_one.then(|| Offer { folder, adapter: None, name: ANY.to_owned() }))
}

/// The newest model of a state directory, else the configured one if it is on this machine.
pub(crate) fn newest_or_base(state: &StateDir, config: &Config) -> Source {
    let (state, config) = (state.clone(), config.clone());
    Arc::new(move || {
        let configured = || -> Result<Offer, EngineError> {
            let folder = cached_model_folder(&config)?;
            let name = config.model.path.as_ref().map_or(ANY.to_owned(), |path| name_of(&path.0));
            Ok(Offer { folder, adapter: None, name })
        };
        match newest(&state) {
            Ok(Some(offer)) => Ok(offer),
            Ok(None) => configured().map_err(|error| match error {
                EngineError::Hub(_) | EngineError::NoModel => Refusal::no_model(
                    "there is no model on this machine yet: the first job brings the base model",
                ),
                error => Refusal::of(&error),
            }),
            Err(error) => Err(Refusal::of(&error)),
        }
    })
}

/// A model whose tokenizer and template a worker has tried.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) offer: Offer,
    pub(super) shape: ModelConfig,
    pub(super) tokenizer: Tokenizer,
}

impl Opened {
    /// Starts a worker on the model's tokenizer and template; what that could load, this process
    /// loads too.
    pub(super) fn open(
        config: &Config,
        offer: Offer,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Standing, Arc<Self>), EngineError> {
        let shape = ModelConfig::read(&offer.folder)?;
        let vocab_size = Some(shape.vocab_size);
        let standing = Standing::start(&config.limits, offer.folder.clone(), vocab_size, stop)?;
        let tokenizer = Tokenizer::open(&offer.folder)?;
        if tokenizer.hash() != standing.tokenizer_sha256() {
            let path = offer.folder.join("tokenizer.json");
            return Err(DataError::Changed { path }.into());
        }
        Ok((standing, Arc::new(Self { offer, shape, tokenizer })))
    }

    /// Tokens of a prompt and its answer together at most, where the model says.
    pub(super) fn context(&self) -> Option<usize> {
        context(&self.shape)
    }
}

/// `max_position_embeddings`, which models with several parts have in one of them.
pub(crate) fn context(shape: &ModelConfig) -> Option<usize> {
    let of = |pointer: &str| shape.raw.pointer(pointer).and_then(Value::as_u64);
    let positions = of("/max_position_embeddings").or(of("/text_config/max_position_embeddings"));
    positions.map(|positions| positions as usize)
}

impl Offer {
    /// Whether a request for this model means the one that is served.
    pub(crate) fn is_meant_by(&self, asked: Option<&str>) -> bool {
        asked.is_none_or(|asked| asked == self.name || asked == ANY)
    }

    /// The model as `/v1/models` lists it, with the longest context where that is known.
    pub(crate) fn listed(&self) -> Value {
        let written = self.folder.join("config.json").metadata().and_then(|file| file.modified());
        let created = written.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let shape = ModelConfig::read(&self.folder).ok();
        json!({
            "id": self.name,
            "object": "model",
            "created": created.map_or(0, |at| at.as_secs()),
            "owned_by": "chandler",
            "max_model_len": shape.as_ref().and_then(context),
        })
    }
}
