//! Models from the Hugging Face hub, by hf-hub, whose cache and environment variables hold, and to
//! it.
//!
//! `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` and `HF_TOKEN` mean what they mean to Python's
//! huggingface_hub; so does `HF_HUB_OFFLINE`.

mod push;

use std::path::PathBuf;
use std::sync::Arc;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClientBuilder, HFError, HFRepositorySync};

pub use push::{CARD_FILE, Push, PushError, PushOptions, Pushed, Upload};

/// A model folder, or a model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// On this machine.
    Folder(PathBuf),
    /// On the hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit; `None` is the main branch.
        revision: Option<String>,
    },
}

/// Where and how to look.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// In place of `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// In place of `HF_TOKEN` and the token that `hf auth login` wrote.
    pub token: Option<String>,
    /// In place of `HF_HUB_CACHE`.
    pub cache_dir: Option<PathBuf>,
    /// Only the cache is asked.
    pub offline: bool,
    /// Further tries after a failure; `None` is hf-hub's own number.
    pub max_retries: Option<usize>,
}

/// How far a file has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// Its name.
    pub file: String,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No answer from the hub.
    #[error("the hub cannot be reached for {id}: {source}")]
    Unreachable {
        /// The model.
        id: String,
        /// What the client says.
        #[source]
        source: Box<HFError>,
    },
    /// There is no such model, or it is private.
    #[error("the hub has no model {id}")]
    NotFound {
        /// The model.
        id: String,
    },
    /// The model has no such branch, tag or commit.
    #[error("{id} has no revision {revision}")]
    NoRevision {
        /// The model.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The hub wants a token, or another one.
    #[error("the hub does not give {id} to this user")]
    Refused {
        /// The model.
        id: String,
    },
    /// The model's repository lacks a file that a model needs.
    #[error("{id} has no {file}")]
    NoFile {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// Offline, and not in the cache.
    #[error("{file} of {id} is not in the cache, and HF_HUB_OFFLINE is set")]
    NotCached {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// An index of shards that cannot be read.
    #[error("the shard index of {id} is not understood: {reason}")]
    BadIndex {
        /// The model.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else that hf-hub says.
    #[error("{id}: {source}")]
    Client {
        /// The model.
        id: String,
        /// What the client says.
        #[source]
        source: Box<HFError>,
    },
}

impl HubError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => {
                "check the network and HF_ENDPOINT, give a model folder, or set HF_HUB_OFFLINE=1 \
                 to use the cache"
                    .to_owned()
            }
            Self::NotFound { id } => {
                format!("check the spelling of {id}; a private model needs HF_TOKEN")
            }
            Self::NoRevision { .. } => "leave model.revision unset for the main branch".to_owned(),
            Self::Refused { id } => format!(
                "accept the model's terms at https://huggingface.co/{id} and set HF_TOKEN to a \
                 token that may read it"
            ),
            Self::NoFile { .. } => {
                "chandler reads safetensors, and never pickles (.bin, .pt): look for a repository \
                 that has them, or convert the model with transformers' save_pretrained"
                    .to_owned()
            }
            Self::NotCached { .. } => {
                "unset HF_HUB_OFFLINE once, so that it can be downloaded".to_owned()
            }
            Self::BadIndex { .. } | Self::Client { .. } => return None,
        })
    }
}

impl ModelSource {
    /// A path that exists or looks like one is a folder; `owner/name` and `owner/name@revision`
    /// are on the hub.
    pub fn parse(text: &str) -> Self {
        let looks_like_path = text.starts_with(['/', '.', '~']) || text.matches('/').count() != 1;
        if looks_like_path || PathBuf::from(text).exists() {
            return Self::Folder(PathBuf::from(text));
        }
        match text.split_once('@') {
            Some((id, revision)) => {
                Self::Hub { id: id.to_owned(), revision: Some(revision.to_owned()) }
            }
            None => Self::Hub { id: text.to_owned(), revision: None },
        }
    }
}

impl HubOptions {
    /// As the environment says.
    pub fn from_env() -> Self {
        let set = |value: String| {
            !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "false" | "no")
        };
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(set);
        Self { offline, ..Self::default() }
    }
}

/// Files that a model may come without.
const OPTIONAL: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "added_tokens.json",
];

/// The folder of a model; one on the hub is downloaded, file by file, unless it is in the cache.
pub fn resolve(
    source: &ModelSource,
    options: &HubOptions,
    progress: Arc<dyn Fn(Download) + Send + Sync>,
) -> Result<PathBuf, HubError> {
    let (id, revision) = match source {
        ModelSource::Folder(folder) => return Ok(folder.clone()),
        ModelSource::Hub { id, revision } => (id.clone(), revision.clone()),
    };
    let repository = repository(&id, options)?;
    let fetch = Fetch { id, revision, repository, offline: options.offline, progress };
    let Some(config) = fetch.optional("config.json")? else { return Err(fetch.why_nothing()) };
    for file in OPTIONAL {
        fetch.optional(file)?;
    }
    if fetch.optional("model.safetensors")?.is_none() {
        let Some(index) = fetch.optional("model.safetensors.index.json")? else {
            return Err(fetch.missing("model.safetensors"));
        };
        for shard in fetch.shards(&index)? {
            fetch.required(&shard)?;
        }
    }
    Ok(config.parent().map(PathBuf::from).unwrap_or_default())
}

fn repository(id: &str, options: &HubOptions) -> Result<HFRepositorySync<RepoTypeModel>, HubError> {
    let mut builder = HFClientBuilder::new().user_agent("chandler");
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint(endpoint.clone());
    }
    if let Some(token) = &options.token {
        builder = builder.token(token.clone());
    }
    if let Some(folder) = &options.cache_dir {
        builder = builder.cache_dir(folder.clone());
    }
    if let Some(retries) = options.max_retries {
        builder = builder.retry_max_attempts(retries);
    }
    let client = builder
        .build_sync()
        .map_err(|source| HubError::Client { id: id.to_owned(), source: Box::new(source) })?;
    let (owner, name) = id.split_once('/').unwrap_or(("", id));
    Ok(client.model(owner, name))
}

struct Fetch {
    id: String,
    revision: Option<String>,
    repository: HFRepositorySync<RepoTypeModel>,
    offline: bool,
    progress: Arc<dyn Fn(Download) + Send + Sync>,
}

impl Fetch {
    fn required(&self, file: &str) -> Result<PathBuf, HubError> {
        self.optional(file)?.ok_or_else(|| self.missing(file))
    }

    fn missing(&self, file: &str) -> HubError {
        let (id, file) = (self.id.clone(), file.to_owned());
        if self.offline { HubError::NotCached { id, file } } else { HubError::NoFile { id, file } }
    }

    /// `None` if the repository (offline: the cache) has no such file.
    fn optional(&self, file: &str) -> Result<Option<PathBuf>, HubError> {
        let told = Told { file: file.to_owned(), progress: Arc::clone(&self.progress) };
        let fetched = self
            .repository
            .download_file()
            .filename(file)
            .maybe_revision(self.revision.clone())
            .local_files_only(self.offline)
            .progress(told)
            .send();
        match fetched {
            Ok(path) => Ok(Some(path)),
            Err(HFError::EntryNotFound { .. } | HFError::LocalEntryNotFound { .. }) => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// The hub answers alike for a missing model, revision and file, so it is asked about each.
    fn why_nothing(&self) -> HubError {
        let id = self.id.clone();
        if self.offline {
            return self.missing("config.json");
        }
        match (self.repository.info().send(), &self.revision) {
            (Err(HFError::RepoNotFound { .. } | HFError::EntryNotFound { .. }), _) => {
                HubError::NotFound { id }
            }
            (Err(error), _) => self.explain(error),
            (Ok(_), Some(revision)) => {
                match self.repository.info().revision(revision.clone()).send() {
                    Err(_) => HubError::NoRevision { id, revision: revision.clone() },
                    Ok(_) => self.missing("config.json"),
                }
            }
            (Ok(_), None) => self.missing("config.json"),
        }
    }

    fn explain(&self, error: HFError) -> HubError {
        let id = self.id.clone();
        match error {
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => HubError::Refused { id },
            HFError::RepoNotFound { .. } => HubError::NotFound { id },
            HFError::RevisionNotFound { revision, .. } => HubError::NoRevision { id, revision },
            HFError::Request { .. } => HubError::Unreachable { id, source: Box::new(error) },
            other => HubError::Client { id, source: Box::new(other) },
        }
    }

    fn shards(&self, index: &std::path::Path) -> Result<Vec<String>, HubError> {
        let bad = |reason: String| HubError::BadIndex { id: self.id.clone(), reason };
        let text = crate::foreign::read_json(index).map_err(|error| bad(error.to_string()))?;
        let index: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let map = index.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or_else(|| bad("it has no weight_map".to_owned()))?;
        let mut shards: Vec<String> =
            map.values().filter_map(|shard| shard.as_str().map(str::to_owned)).collect();
        shards.sort();
        shards.dedup();
        match shards.iter().find(|shard| shard.contains(['/', '\\']) || shard.starts_with('.')) {
            Some(stray) => Err(bad(format!("it names {stray:?}"))),
            None => Ok(shards),
        }
    }
}

/// Passes hf-hub's events on, with the name of the file.
struct Told {
    file: String,
    progress: Arc<dyn Fn(Download) + Send + Sync>,
}

impl ProgressHandler for Told {
    fn on_progress(&self, event: &ProgressEvent) {
        let tell = |done, total: u64| {
            let total = (total > 0).then_some(total);
            (self.progress)(Download { file: self.file.clone(), done, total });
        };
        match event {
            ProgressEvent::Download(DownloadEvent::Start { total_bytes, .. }) => {
                tell(0, *total_bytes);
            }
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                for file in files {
                    tell(file.bytes_completed, file.total_bytes);
                }
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed,
                total_bytes,
                ..
            }) => tell(*bytes_completed, *total_bytes),
            _ => {}
        }
    }
}
