//! What the model of a state directory began from. Its manifest says so, and passes it on from model to
//! model; `model.path` must go on naming that.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use chandler_durable::{RealFs, read_manifest};
use chandler_model::hub::ModelSource;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::EngineError;
use super::source::{beginning, cached_model_folder, weight_files};
use crate::config::Config;
use crate::state_dir::StateDir;

/// In a manifest.
pub(super) const KEY: &str = "base";

/// Of each file of weights, so many pieces are looked at: training moves nearly every one.
const PIECES: u64 = 256;
const PIECE_BYTES: usize = 4096;

/// A base model, as it was when the first job began from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// `model.path`; of a folder its full path.
    path: String,
    /// `model.revision`.
    revision: Option<String>,
    /// What tells its weights from others, wherever they lie.
    fingerprint: Option<String>,
}

/// `model.path` names another model than the one that was learned from.
#[derive(Debug, thiserror::Error)]
#[error("model.path is {is}, and the model in {} began from {was}", model.display())]
pub struct OtherBase {
    model: PathBuf,
    was: String,
    is: String,
}

impl OtherBase {
    /// How to go on with what was learned, or to start anew.
    pub fn hint(&self) -> String {
        let Self { was, is, .. } = self;
        format!(
            "to go on, set model.path back to {was}; to start anew with {is}, make another state \
             directory: `chandler init --dir NEW --model {is}`"
        )
    }
}

impl Origin {
    /// The configured model, which lies in `folder`; `None` where none is configured.
    pub(super) fn of(config: &Config, folder: Option<&Path>) -> Option<Self> {
        let path = full_name(&config.model.path.as_ref()?.0);
        // A folder that cannot be read is no reason to lose a run.
        let fingerprint = folder.and_then(|folder| fingerprint(folder).ok());
        Some(Self { path, revision: config.model.revision.clone(), fingerprint })
    }

    /// What a manifest's text says; models of earlier versions say nothing.
    fn read(extra: &Value) -> Option<Self> {
        serde_json::from_value(extra[KEY].clone()).ok()
    }

    /// That of the model in `model/`, where there is one that says so.
    pub(super) fn of_newest(state: &StateDir) -> Result<Option<Self>, EngineError> {
        let manifest = read_manifest(&RealFs, &state.model())?.ok();
        Ok(manifest.and_then(|manifest| Self::read(&manifest.extra)))
    }

    fn name(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{} (revision {revision})", self.path),
            None => self.path.clone(),
        }
    }

    /// Whether both name one model: by the same words, one id on the hub, or the same weights.
    fn is_same(&self, other: &Self) -> bool {
        let is_one_id = || {
            let (own, others) = (hub_id(&self.path), hub_id(&other.path));
            let any_revision = self.revision.is_none() || other.revision.is_none();
            own.is_some() && own == others && any_revision
        };
        let is_named_alike = self.path == other.path && self.revision == other.revision;
        let has_same_weights = self.fingerprint.is_some() && self.fingerprint == other.fingerprint;
        is_named_alike || is_one_id() || has_same_weights
    }
}

/// Refuses a `model.path` that is not what the model in `model/` began from. Nobody but this machine is
/// asked.
pub(crate) fn check_origin(state: &StateDir, config: &Config) -> Result<(), EngineError> {
    let (Some(was), Some(named)) = (Origin::of_newest(state)?, Origin::of(config, None)) else {
        return Ok(());
    };
    if was.is_same(&named) {
        return Ok(());
    }
    // It may have moved. One that is not here has no weights to tell by.
    let folder = cached_model_folder(config).ok();
    let is = Origin::of(config, folder.as_deref()).unwrap_or(named);
    if was.is_same(&is) {
        return Ok(());
    }
    let (was, is) = (was.name(), is.name());
    Err(EngineError::OtherBase(Box::new(OtherBase { model: state.model(), was, is })))
}

/// A folder by its full path, also when it is there no more: links and dots before its own name are
/// followed. An id as it is.
fn full_name(text: &str) -> String {
    let ModelSource::Folder(folder) = ModelSource::parse(text) else { return text.to_owned() };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    let full = match folder.file_name() {
        Some(name) => parent.unwrap_or(Path::new(".")).canonicalize().map(|full| full.join(name)),
        None => folder.canonicalize(),
    };
    full.map_or_else(|_| text.to_owned(), |full| full.to_string_lossy().into_owned())
}

/// The id on the hub of what is named by it, or lies in its cache.
fn hub_id(path: &str) -> Option<String> {
    if let ModelSource::Hub { id, .. } = ModelSource::parse(path) {
        return Some(id);
    }
    let mut parts = Path::new(path).iter().rev().filter_map(|part| part.to_str());
    let (_commit, snapshots, repository) = (parts.next()?, parts.next()?, parts.next()?);
    let id = repository.strip_prefix("models--").filter(|_| snapshots == "snapshots")?;
    Some(id.replacen("--", "/", 1))
}

/// A hash of pieces of the weights: to read all of them would take as long as to load the model.
fn fingerprint(folder: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    for name in weight_files(folder) {
        let path = folder.join(&name);
        hash.update(beginning(&path)?);
        let file = File::open(&path)?;
        let last = file.metadata()?.len().saturating_sub(PIECE_BYTES as u64);
        for number in 0..=PIECES {
            let read = file.read_at(&mut piece, last / PIECES * number)?;
            hash.update(&piece[..read]);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelPath;

    fn named(path: &str, revision: Option<&str>, folder: Option<&Path>) -> Origin {
        let mut config = Config::default();
        config.model.path = Some(ModelPath(path.to_owned()));
        config.model.revision = revision.map(str::to_owned);
        Origin::of(&config, folder).unwrap()
    }

    fn model(folder: &Path, weights: &[u8]) {
        std::fs::create_dir_all(folder).unwrap();
        let bytes = [&2_u64.to_le_bytes()[..], b"{}", weights].concat();
        chandler_durable::write(&folder.join("model.safetensors"), &bytes).unwrap();
    }

    #[test]
    fn a_model_is_the_same_by_its_words_its_id_or_its_weights() {
        let hub = named("Qwen/Qwen3-0.6B", None, None);
        let cached = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1";
        assert!(hub.is_same(&hub) && hub.is_same(&named(cached, None, None)));
        assert!(named(cached, None, None).is_same(&hub));
        assert!(!hub.is_same(&named("Qwen/Qwen3-0.6B-Base", None, None)));
        assert!(!hub.is_same(&named("/models/Qwen3-0.6B", None, None)));
        let [one, two] = ["v1", "v2"].map(|v| named("Qwen/Qwen3-0.6B", Some(v), None));
        assert!(one.is_same(&one) && !one.is_same(&two) && one.is_same(&hub));

        let place = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| place.path().join(name));
        let mut weights = vec![1; 3 << 20];
        model(&a, &weights);
        model(&b, &weights);
        weights.iter_mut().step_by(1000).for_each(|byte| *byte = 2);
        model(&c, &weights);
        let [a, b, c] = [a, b, c].map(|path| named(path.to_str().unwrap(), None, Some(&path)));
        assert!(a.is_same(&b), "it was moved");
        assert!(!a.is_same(&c), "it has learned");
        // By another way to it, and although it is gone.
        std::fs::remove_dir_all(place.path().join("a")).unwrap();
        let again = place.path().join("b/../a");
        assert!(a.is_same(&named(again.to_str().unwrap(), None, None)));
    }

    #[test]
    fn what_nothing_is_known_of_is_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        state.init("").unwrap();
        let mut config = Config::default();
        config.model.path = Some(ModelPath("owner/name".to_owned()));
        check_origin(&state, &config).unwrap();
        let seal = |extra: Value| {
            let place = state.model();
            if place.exists() {
                std::fs::remove_dir_all(&place).unwrap();
            }
            chandler_durable::SealedFolder::begin(&RealFs, &place).unwrap().seal(extra).unwrap();
        };
        seal(serde_json::json!({ "job_id": 3 }));
        check_origin(&state, &config).unwrap();
        seal(serde_json::json!({ KEY: named("/models/other", None, None) }));
        let error = check_origin(&state, &config).unwrap_err();
        let words = format!("{error}: {}", error.hint().unwrap());
        for part in ["owner/name", "/models/other", "init --dir NEW --model owner/name"] {
            assert!(words.contains(part), "{words}");
        }
        config.model.path = None;
        check_origin(&state, &config).unwrap();
    }
}
