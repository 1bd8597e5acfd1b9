//! Where the fixtures are, and how they are read.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use chandler_data::{DataError, DataOptions, Dataset, TextPipeline};
use serde_json::Value;

pub(crate) const MODELS: [&str; 7] =
    ["smol-llama", "llama-gqa", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens")
}

pub(crate) fn pipeline(name: &str) -> TextPipeline {
    TextPipeline::open(&goldens().join("models").join(name)).unwrap()
}

pub(crate) fn golden(name: &str, file: &str) -> Value {
    let path = goldens().join("goldens").join(name).join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub(crate) fn labels(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

/// Tokenizes a file of these bytes.
pub(crate) fn open(bytes: &[u8], name: &str, options: &DataOptions) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    File::create(&path).unwrap().write_all(bytes).unwrap();
    Dataset::open(&[path], &pipeline(name), options, folder.path(), &|_| {})
}
