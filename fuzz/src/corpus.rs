//! Inputs to begin with, one folder a target, each file one input.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The inputs of one target and the words that matter in them.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Whole inputs, by the names of their files.
    pub inputs: Vec<Vec<u8>>,
    /// Words of the format.
    pub words: Vec<Vec<u8>>,
}

impl Corpus {
    /// What lies in `corpus/NAME`; `words.txt` there holds a word a line.
    pub fn read(name: &str) -> anyhow::Result<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let listed = std::fs::read_dir(&folder);
        let listed = listed.with_context(|| format!("cannot list {}", folder.display()))?;
        let mut paths =
            listed.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        let (mut inputs, mut words) = (vec![], vec![]);
        for path in paths {
            let bytes = std::fs::read(&path)?;
            if path.ends_with("words.txt") {
                let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                words = lines.map(<[u8]>::to_vec).collect();
            } else {
                inputs.push(bytes);
            }
        }
        ensure!(!inputs.is_empty(), "{} holds no input", folder.display());
        Ok(Self { inputs, words })
    }
}
