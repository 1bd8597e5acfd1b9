//! `tokenizer.json`, as far as GGUF asks for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::GgufError;
use crate::{ModelError, foreign};

/// What is read of a tokenizer.
#[derive(Debug)]
pub(super) struct TokenizerJson {
    pub(super) path: PathBuf,
    pub(super) raw: Raw,
    /// Pairs in the order in which they are merged.
    pub(super) merges: Vec<(String, String)>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Raw {
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    pub(super) post_processor: Option<Value>,
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    pub(super) model: Model,
}

#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
}

/// A model of the kind BPE.
#[derive(Debug, Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) vocab: BTreeMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Two parts, or one text with a space between them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl TokenizerJson {
    pub(super) fn read(folder: &Path) -> Result<Self, GgufError> {
        let path = folder.join("tokenizer.json");
        let text = foreign::read_json(&path)?;
        // The kind first: what is no BPE model has its vocabulary in another form.
        let value: Value = serde_json::from_str(&text)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let kind = value.pointer("/model/type").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "BPE") {
            let reason = format!("its model is of the kind {kind:?}, not BPE");
            return Err(GgufError::Tokenizer { path, reason });
        }
        let mut raw: Raw = serde_json::from_value(value)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        let mut merges = vec![];
        for merge in std::mem::take(&mut raw.model.merges) {
            merges.push(match merge {
                Merge::Pair(left, right) => (left, right),
                Merge::Text(text) => match text.split_once(' ') {
                    Some((left, right)) => (left.to_owned(), right.to_owned()),
                    None => {
                        let reason = "one of its merges is no pair".to_owned();
                        return Err(GgufError::Tokenizer { path, reason });
                    }
                },
            });
        }
        let tokenizer = Self { path, raw, merges };
        let affixes = [
            &tokenizer.raw.model.continuing_subword_prefix,
            &tokenizer.raw.model.end_of_word_suffix,
        ];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty())
            || tokenizer.raw.model.kind.is_none()
        {
            return Err(tokenizer.refused("its model is not a plain BPE"));
        }
        Ok(tokenizer)
    }

    /// The error that llama.cpp does not do what this does.
    pub(super) fn refused(&self, reason: impl Into<String>) -> GgufError {
        GgufError::Tokenizer { path: self.path.clone(), reason: reason.into() }
    }

    /// The number of a token, added or not.
    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.raw.added_tokens.iter().find(|added| added.content == token);
        added.map(|added| added.id).or_else(|| self.raw.model.vocab.get(token).copied())
    }
}
