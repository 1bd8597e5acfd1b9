//! The list of a sealed folder's files, which is written last.

use serde::{Deserialize, Serialize};

/// The manifest's own name.
pub const MANIFEST_NAME: &str = "manifest.json";

/// What a sealed folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: 2. In 1 the hashes were all SHA-256.
    pub version: u32,
    /// The files, in the order of their names.
    pub files: Vec<FileRecord>,
    /// Whatever the writer wants to know again.
    pub extra: serde_json::Value,
}

/// One file of a sealed folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Of its bytes.
    #[serde(flatten)]
    pub hash: FileHash,
}

/// A hash of a file's bytes, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileHash {
    /// What is written: several times as fast as the other, and as sure.
    Blake3(String),
    /// What earlier versions wrote.
    Sha256(String),
}
