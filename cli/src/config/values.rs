//! Values that are more than a number or a word, and less than a section.

use chandler_vram::Bytes;
use serde::{Deserialize, Serialize};

use super::keys::{ConfigValue, Kind};

/// A model folder, or the id of a model on the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelPath(pub String);

impl ConfigValue for ModelPath {
    const KIND: Kind = Kind::ModelPath;
}

/// An amount of memory, such as `2GiB`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemorySize(pub String);

impl MemorySize {
    /// In bytes; the text was checked when it was read.
    pub fn bytes(&self) -> Option<u64> {
        self.0.parse().ok().map(|Bytes(bytes)| bytes)
    }
}

impl ConfigValue for MemorySize {
    const KIND: Kind = Kind::Size;
}
