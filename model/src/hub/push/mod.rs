//! A model folder on its way to the hub, by the hub's HTTP API.
//!
//! As `huggingface_hub` does it: the repository is made if it is missing; the hub is asked which
//! files it keeps as large ones; those are uploaded by the Git LFS protocol, in one piece or in
//! parts; then one commit names them and holds the small files. A push that is cut off leaves the
//! repository as it was, and the next one uploads only what is not there yet.

mod client;
mod error;
mod lfs;
mod token;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::folder::COMPANION_FILES;
use crate::foreign;
use client::Client;
pub use error::PushError;

/// The name of a model card.
pub const CARD_FILE: &str = "README.md";
/// Bytes of a file that the hub looks at to tell large files from small ones.
const SAMPLE_BYTES: u64 = 512;
/// Files of a commit that are not large ones, together.
const MAX_COMMIT_BYTES: u64 = 64 << 20;
const BRANCH: &str = "main";

/// Where and how to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// In place of `HF_ENDPOINT`.
    pub endpoint: Option<String>,
    /// In place of `HF_TOKEN` and the token that `hf auth login` wrote.
    pub token: Option<String>,
    /// A repository that is made is seen by its owner alone.
    pub private: bool,
    /// The commit's message.
    pub message: String,
    /// Further tries after a failure that may pass; `None` is three.
    pub max_retries: Option<u32>,
}

/// What came of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// The commit.
    pub commit: String,
    /// The files, by name.
    pub files: Vec<String>,
    /// Bytes of large files that were uploaded, those that were there already left out.
    pub uploaded_bytes: u64,
}

/// How far an upload has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The file's name.
    pub file: String,
    /// Bytes that were sent.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A repository that is about to get a commit.
pub struct Push {
    id: String,
    client: Client,
    message: String,
}

/// A file of the commit. It stays open: its size, its hash and what is sent are of the same bytes,
/// whatever is put under its name meanwhile.
struct Source {
    name: String,
    path: PathBuf,
    file: Arc<File>,
    size: u64,
    sample: Vec<u8>,
}

/// A part of an open file, read from a place of its own: what else reads the file moves it nowhere.
struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Push {
    /// Makes the repository `owner/name` unless there is one.
    pub fn begin(id: &str, options: &PushOptions) -> Result<Self, PushError> {
        let parts: Vec<&str> = id.split('/').collect();
        let sound = |part: &&str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && part.len() <= 96 && !part.contains("..") && part.chars().all(plain)
        };
        let [owner, name] = parts[..] else {
            return Err(PushError::BadId { id: id.to_owned() });
        };
        if !parts.iter().all(sound) {
            return Err(PushError::BadId { id: id.to_owned() });
        }
        if super::HubOptions::from_env().offline {
            return Err(PushError::Offline);
        }
        let client = Client::new(id, options)?;
        let wanted = json!({
            "name": name, "organization": owner, "type": "model", "private": options.private,
        });
        match client.post_json("/api/repos/create", &wanted) {
            // 409: it is there.
            Ok(_) | Err(PushError::Answered { status: 409, .. }) => {}
            // A token that may write to this repository alone may make none, not even this one.
            Err(error @ PushError::Forbidden { .. }) => {
                if client.get_json(&format!("/api/models/{id}")).is_err() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(Self { id: id.to_owned(), client, message: options.message.clone() })
    }

    /// Whether the repository has a model card.
    pub fn has_card(&self) -> Result<bool, PushError> {
        let path = format!("/{}/resolve/{BRANCH}/{CARD_FILE}", self.id);
        match self.client.head(&path) {
            Ok(()) => Ok(true),
            Err(PushError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the hub says about another model, such as its license; `None` where it says nothing.
    pub fn card_of(&self, model: &str) -> Option<Value> {
        let told = self.client.get_json(&format!("/api/models/{model}")).ok()?;
        told.get("cardData").filter(|card| card.is_object()).cloned()
    }

    /// Commits the model files of `folder`, with `card` in place of its model card where one is
    /// given. `progress` is told of large files.
    pub fn commit(
        &self,
        folder: &Path,
        card: Option<&str>,
        progress: &dyn Fn(Upload),
    ) -> Result<Pushed, PushError> {
        let mut sources = foreign::of_one_folder(folder, || sources(folder))?;
        if card.is_some() {
            sources.retain(|source| source.name != CARD_FILE);
        }
        if sources.is_empty() {
            return Err(PushError::NothingThere { folder: folder.to_owned() });
        }
        let large = self.large_files(&sources)?;
        let uploads: Vec<&Source> =
            sources.iter().filter(|source| large.contains(&source.name)).collect();
        let objects = uploads.iter().map(|source| Ok((source.oid()?, *source)));
        let objects = objects.collect::<Result<Vec<_>, PushError>>()?;
        let uploaded_bytes = lfs::upload(&self.client, &self.id, &objects, progress)?;
        let header = json!({ "summary": self.message, "description": "" });
        let mut lines = vec![json!({ "key": "header", "value": header })];
        if let Some(card) = card {
            lines.push(small_file(CARD_FILE, card.as_bytes()));
        }
        let mut bytes = 0;
        for source in sources.iter().filter(|source| !large.contains(&source.name)) {
            bytes += source.size;
            if bytes > MAX_COMMIT_BYTES {
                return Err(PushError::TooLarge { file: source.name.clone() });
            }
            lines.push(small_file(&source.name, &source.read(source.size)?));
        }
        for (oid, source) in &objects {
            lines.push(json!({ "key": "lfsFile", "value": {
                "path": source.name, "algo": "sha256", "oid": oid, "size": source.size,
            } }));
        }
        let commit = self.client.post_lines(&self.path("commit"), &lines)?;
        let mut files: Vec<String> = sources.into_iter().map(|source| source.name).collect();
        files.extend(card.map(|_| CARD_FILE.to_owned()));
        files.sort();
        Ok(Pushed {
            url: format!("{}/{}", self.client.endpoint(), self.id),
            commit: commit["commitOid"].as_str().unwrap_or_default().to_owned(),
            files,
            uploaded_bytes,
        })
    }

    fn path(&self, what: &str) -> String {
        format!("/api/models/{}/{what}/{BRANCH}", self.id)
    }

    /// The names of the files that go by LFS.
    fn large_files(&self, sources: &[Source]) -> Result<Vec<String>, PushError> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Mode>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mode {
            path: String,
            upload_mode: String,
        }
        let file = |source: &Source| {
            json!({
                "path": source.name, "size": source.size, "sample": STANDARD.encode(&source.sample),
            })
        };
        let files: Vec<Value> = sources.iter().map(file).collect();
        let answer = self.client.post_json(&self.path("preupload"), &json!({ "files": files }))?;
        let answer: Answer = serde_json::from_value(answer).map_err(|error| {
            PushError::BadAnswer { id: self.id.clone(), reason: error.to_string() }
        })?;
        let large = answer.files.into_iter().filter(|file| file.upload_mode == "lfs");
        // An empty file has no object.
        let is_empty = |name: &str| sources.iter().any(|s| s.name == name && s.size == 0);
        Ok(large.map(|file| file.path).filter(|name| !is_empty(name)).collect())
    }
}

fn small_file(name: &str, bytes: &[u8]) -> Value {
    let content = STANDARD.encode(bytes);
    json!({ "key": "file", "value": { "path": name, "encoding": "base64", "content": content } })
}

/// The files of a folder that are a model's, or an adapter's.
fn sources(folder: &Path) -> Result<Vec<Source>, PushError> {
    let unreadable = |source| PushError::Read { path: folder.to_owned(), source };
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let Ok(name) = entry.map_err(unreadable)?.file_name().into_string() else { continue };
        let path = folder.join(&name);
        if !is_of_a_model(&name) || !path.is_file() {
            continue;
        }
        foreign::check_inside(folder, &path)?;
        let unreadable = |source| PushError::Read { path: path.clone(), source };
        let file = foreign::open_regular(&path)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let file = Arc::new(file);
        let mut source = Source { name, path: path.clone(), file, size, sample: vec![] };
        source.sample = source.read(SAMPLE_BYTES)?;
        found.push(source);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn is_of_a_model(name: &str) -> bool {
    const OTHERS: [&str; 4] =
        ["config.json", "adapter_config.json", "model.safetensors.index.json", CARD_FILE];
    COMPANION_FILES.contains(&name)
        || OTHERS.contains(&name)
        || (!name.starts_with('.') && (name.ends_with(".safetensors") || name.ends_with(".gguf")))
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Source {
    fn part(&self, start: u64, length: u64) -> Part {
        Part { file: Arc::clone(&self.file), at: start, left: length }
    }

    fn unreadable(&self, source: io::Error) -> PushError {
        PushError::Read { path: self.path.clone(), source }
    }

    fn read(&self, at_most: u64) -> Result<Vec<u8>, PushError> {
        let mut bytes = vec![];
        let read = self.part(0, at_most).read_to_end(&mut bytes);
        read.map_err(|source| self.unreadable(source))?;
        Ok(bytes)
    }

    /// SHA-256 of the file, in hexadecimal: its name in LFS.
    fn oid(&self) -> Result<String, PushError> {
        let mut hash = Sha256::new();
        let mut file = self.part(0, self.size);
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk).map_err(|source| self.unreadable(source))? {
                0 => break,
                some => hash.update(&chunk[..some]),
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_after_it_was_listed_is_sent_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        chandler_durable::write(&path, b"0123456789").unwrap();
        let source = sources(folder.path()).unwrap().remove(0);
        let oid = source.oid().unwrap();
        // A new file is renamed over the old one.
        chandler_durable::write(&path, b"another one").unwrap();
        let mut part = String::new();
        source.part(3, 4).read_to_string(&mut part).unwrap();
        assert_eq!((part.as_str(), source.size), ("3456", 10));
        assert_eq!(source.oid().unwrap(), oid);
    }
}
