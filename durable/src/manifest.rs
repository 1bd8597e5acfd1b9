//! The list of a sealed folder's files, which is written last.

use serde::{Deserialize, Serialize};

/// The manifest's own name.
pub const MANIFEST_NAME: &str = "manifest.json";

/// What a sealed folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: 1.
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
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}
