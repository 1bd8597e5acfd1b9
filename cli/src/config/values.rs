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

/// Where a model computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceChoice(pub String);

/// What a [`DeviceChoice`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first GPU, where there is one that this build can use, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The place; the text was checked when it was read.
    pub fn place(&self) -> Place {
        Place::from_text(&self.0).unwrap_or(Place::Auto)
    }
}

impl Place {
    /// What a text means by `auto`, `cpu`, `cuda` or `cuda:N`.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda),
        }
    }
}

impl ConfigValue for DeviceChoice {
    const KIND: Kind = Kind::Device;
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
