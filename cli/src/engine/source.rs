//! Where a model comes from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chandler_data::Tokenizer;
use chandler_durable::{MANIFEST_NAME, is_there};
use chandler_model::hub::{Download, HubOptions, ModelSource, resolve};
use chandler_model::{AdapterBase, CausalLm, GenerationConfig};
use sha2::{Digest, Sha256};

use super::EngineError;
use super::device::device;
use super::memory::keep_limit;
use super::no_folder::{refuse_lookalike, source_of};
use super::settings::dtype;
use super::snapshots::names_in;
use crate::config::Config;
use crate::logging::Progress;
use crate::state_dir::StateDir;
use crate::store::Binding;

/// Of a file of weights, more than its header is believed to have is not looked at.
const MOST_OF_A_HEADER: u64 = 100 << 20;

/// The folder of the configured model; one from the hub is downloaded first, or found in the cache.
pub(crate) fn model_folder(config: &Config, progress: &Progress) -> Result<PathBuf, EngineError> {
    let source = model_source(config)?;
    if let ModelSource::Folder(folder) = source {
        return Ok(folder);
    }
    refuse_lookalike(config)?;
    let terminal = progress.clone();
    let tell = Arc::new(move |now: Download| terminal.download(&now.file, now.done, now.total));
    let folder = resolve(&source, &HubOptions::from_env(), tell);
    progress.end();
    Ok(folder?)
}

/// Refuses a configured model that is named as a folder which is not there; one that is not configured, or
/// not here yet, is no error.
pub(super) fn check_named(config: &Config) -> Result<(), EngineError> {
    if config.model.path.is_none() {
        return Ok(());
    }
    model_source(config)?;
    refuse_lookalike(config)
}

/// As [`model_folder`], but nothing is downloaded.
pub(crate) fn cached_model_folder(config: &Config) -> Result<PathBuf, EngineError> {
    let options = HubOptions { offline: true, ..HubOptions::from_env() };
    Ok(resolve(&model_source(config)?, &options, Arc::new(|_| {}))?)
}

fn model_source(config: &Config) -> Result<ModelSource, EngineError> {
    let path = config.model.path.as_ref().ok_or(EngineError::NoModel)?;
    let mut source = source_of(&path.0)?;
    if let (ModelSource::Hub { revision, .. }, Some(wanted)) = (&mut source, &config.model.revision)
    {
        *revision = Some(wanted.clone());
    }
    Ok(source)
}

/// A model as an adapter names its base: the id on the hub, whatever folder of this machine's cache it
/// lies in, and the revision apart from it; of a folder its path. `revision` goes before the one that
/// stands behind an `@`.
pub(crate) fn base_name(model: &str, revision: Option<&str>) -> AdapterBase {
    match ModelSource::parse(model) {
        ModelSource::Folder(_) => AdapterBase { name: model.to_owned(), revision: None },
        ModelSource::Hub { id, revision: named } => {
            AdapterBase { name: id, revision: revision.map(str::to_owned).or(named) }
        }
    }
}

/// The folder of the newest model that lies on this machine: that of the state directory once there
/// is one, else the configured one. Nothing is downloaded.
pub(crate) fn model_here(config: &Config, state: &StateDir) -> Result<PathBuf, EngineError> {
    let newest = state.model();
    if is_there(&newest.join("config.json"))? {
        return Ok(newest);
    }
    let here = HubOptions { offline: true, ..HubOptions::from_env() };
    Ok(resolve(&model_source(config)?, &here, Arc::new(|_| {}))?)
}

/// What tells a model folder from every other one: a hash of its manifest, which has those of its
/// files, else of its configuration and of what its weight files begin with, which say what lies
/// where in them.
pub(crate) fn identity(folder: &Path) -> Result<String, EngineError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| EngineError::Read { path: path.to_owned(), source })
    };
    let mut hash = Sha256::new();
    let manifest = folder.join(MANIFEST_NAME);
    if is_there(&manifest)? {
        hash.update(read(&manifest)?);
    } else {
        for name in ["config.json", "model.safetensors.index.json"] {
            let path = folder.join(name);
            if is_there(&path)? {
                hash.update(read(&path)?);
            }
        }
        for name in weight_files(folder) {
            hash.update(name.as_bytes());
            let path = folder.join(&name);
            let begun = beginning(&path);
            hash.update(begun.map_err(|source| EngineError::Read { path, source })?);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn weight_files(folder: &Path) -> Vec<String> {
    let mut names = names_in(folder);
    names.retain(|name| name.ends_with(".safetensors"));
    names.sort();
    names
}

/// The length of a file of weights, and its header.
pub(super) fn beginning(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut found = file.metadata()?.len().to_le_bytes().to_vec();
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length).min(MOST_OF_A_HEADER);
    file.take(length).read_to_end(&mut found)?;
    Ok(found)
}

/// Loads a model in the configured type, with an adapter where one is given, and shows how far it
/// has come where there is somebody to show it to. From here on the process keeps to
/// `memory.limit`.
pub(crate) fn load_model<'a>(
    config: &Config,
    folder: &Path,
    adapter: Option<&Path>,
    progress: impl Into<Option<&'a Progress>>,
) -> Result<CausalLm, EngineError> {
    keep_limit(config);
    let device = device(config)?;
    let progress = progress.into();
    let tell = |done, total| progress.into_iter().for_each(|shown| shown.loading(done, total));
    let loaded = CausalLm::load_telling(folder, Some(dtype(config)), &device, &tell);
    progress.into_iter().for_each(Progress::end);
    let mut model = loaded?;
    if let Some(adapter) = adapter {
        model.load_adapter(adapter)?;
    }
    Ok(model)
}

/// Tokens that end an answer: those of `generation_config.json`, of the model and of the tokenizer.
pub(crate) fn stop_ids(
    folder: &Path,
    model: &CausalLm,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, EngineError> {
    let mut ids = GenerationConfig::read(folder)?
        .eos_token_ids
        .unwrap_or_else(|| model.config().eos_token_ids.clone());
    ids.extend(tokenizer.eos_token_id());
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// What a state directory is bound to by this model.
pub(crate) fn binding(config: &Config, model: &CausalLm, tokenizer_sha256: &str) -> Binding {
    let raw = &model.config().raw;
    let named = raw.pointer("/architectures/0").and_then(serde_json::Value::as_str);
    let base_model = config.model.path.as_ref().map_or_else(String::new, |path| path.0.clone());
    Binding {
        architecture: named.unwrap_or(model.config().family.model_type()).to_owned(),
        vocab_size: model.config().vocab_size as u64,
        tokenizer_sha256: tokenizer_sha256.to_owned(),
        base_model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_names_its_base_as_others_find_it() {
        let named = |model: &str, revision: Option<&str>| {
            let base = base_name(model, revision);
            (base.name, base.revision)
        };
        let id = "Qwen/Qwen3-0.6B".to_owned();
        assert_eq!(named(&id, None), (id.clone(), None));
        assert_eq!(named("Qwen/Qwen3-0.6B@v1", None), (id.clone(), Some("v1".to_owned())));
        assert_eq!(named("Qwen/Qwen3-0.6B@v1", Some("v2")), (id, Some("v2".to_owned())));
        assert_eq!(named("/models/a@b", Some("v2")), ("/models/a@b".to_owned(), None));
    }

    #[test]
    fn a_model_that_has_learned_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            chandler_durable::write(&folder.path().join(name), bytes).unwrap();
            identity(folder.path()).unwrap()
        };
        let weights = |header: &[u8], data: &[u8]| {
            [&(header.len() as u64).to_le_bytes(), header, data].concat()
        };
        put("config.json", b"{}");
        let first = put("model.safetensors", &weights(b"{\"a\": 1}", b"1234"));
        assert_eq!(put("README.md", b"said"), first);
        assert_ne!(put("model.safetensors", &weights(b"{\"b\": 1}", b"1234")), first);
        assert_ne!(put("model.safetensors", &weights(b"{\"a\": 1}", b"12345")), first);
        assert_eq!(put("model.safetensors", &weights(b"{\"a\": 1}", b"1234")), first);
        assert_ne!(put("config.json", b"{ }"), first);
        // A manifest has the hash of every file.
        let sealed = put("manifest.json", b"one");
        assert_ne!(put("manifest.json", b"two"), sealed);
        let torn = weights(b"{}", b"");
        chandler_durable::write(&folder.path().join("model.safetensors"), &torn[..4]).unwrap();
        std::fs::remove_file(folder.path().join("manifest.json")).unwrap();
        assert!(identity(folder.path()).unwrap_err().to_string().contains("model.safetensors"));
    }
}
