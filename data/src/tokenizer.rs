//! The model's tokenizer, as `tokenizer.json` describes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::DataError;
use crate::files::read_bounded;
use crate::tokenizer_rules;

/// Of `tokenizer.json`; the largest in use have 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Of the files beside it.
pub(crate) const MAX_SETTINGS_BYTES: u64 = 16 << 20;
/// Of one token's text. With it, the text of an answer is bounded by the number of its tokens.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// A character of a few bytes may be normalised into dozens, each a token.
const TOKENS_PER_BYTE: usize = 64;
/// Those that a post-processor puts around any text.
const TOKENS_AROUND: usize = 1024;

/// A tokenizer with the special tokens that `tokenizer_config.json` names.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: BTreeMap<String, String>,
    clean_up_spaces: bool,
    hash: String,
}

/// Tokens of a text and where each came from, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` in a model
    /// folder; the latter two may be missing.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, MAX_TOKENIZER_BYTES)?
            .ok_or_else(|| DataError::MissingTokenizer { folder: folder.to_owned() })?;
        let bad = |reason: String| DataError::BadTokenizer { path: path.clone(), reason };
        tokenizer_rules::check(&bytes).map_err(bad)?;
        let loaded = catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|_| bad("the tokenizer library gave up on it".to_owned()))?;
        let mut inner = loaded.map_err(|error| bad(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| bad(error.to_string()))?;
        inner.with_padding(None);
        if let Some(bytes) = longest_token(&inner).filter(|bytes| *bytes > MAX_TOKEN_BYTES) {
            return Err(bad(format!(
                "it has a token of {bytes} bytes, and {MAX_TOKEN_BYTES} are the most"
            )));
        }
        let config = optional_json(&folder.join("tokenizer_config.json"))?;
        let map = optional_json(&folder.join("special_tokens_map.json"))?;
        let mut special = BTreeMap::new();
        for source in [&map, &config].into_iter().flatten() {
            for (name, value) in source.as_object().into_iter().flatten() {
                let content = value.as_str().or_else(|| value.get("content")?.as_str());
                if let (true, Some(content)) = (name.ends_with("_token"), content) {
                    special.insert(name.clone(), content.to_owned());
                }
            }
        }
        let flag = config.as_ref().and_then(|c| c.get("clean_up_tokenization_spaces"));
        let clean_up_spaces = flag.and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { inner, special, clean_up_spaces, hash: hexadecimal(&Sha256::digest(&bytes)) })
    }

    /// SHA-256 of `tokenizer.json`, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The text of a special token by its key, such as `eos_token`.
    pub fn special_token(&self, key: &str) -> Option<&str> {
        self.special.get(key).map(String::as_str)
    }

    /// All of them, by their keys.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// The id of `eos_token`.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.token_id(self.special_token("eos_token")?)
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Tokens in all, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Token ids of `text`, with the tokens that the tokenizer puts around it where
    /// `add_special_tokens`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        Ok(self.tokens(text, add_special_tokens)?.ids)
    }

    pub(crate) fn tokens(&self, text: &str, add_special: bool) -> Result<Tokens, DataError> {
        let encoding = guarded(|| self.inner.encode(text, add_special))?;
        let (tokens, most) = (encoding.len(), TOKENS_PER_BYTE * text.len() + TOKENS_AROUND);
        if tokens > most {
            let bytes = text.len();
            let reason =
                format!("it made {tokens} tokens of {bytes} bytes, and {most} are the most");
            return Err(DataError::Tokenize { reason });
        }
        Ok(Tokens { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Whether [`decode`](Self::decode) takes spaces out before what follows them, as transformers
    /// does for `clean_up_tokenization_spaces`: at the end of a text they may still go.
    pub fn cleans_up_spaces(&self) -> bool {
        self.clean_up_spaces
    }

    /// The text of `ids`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        let text = guarded(|| self.inner.decode(ids, skip_special_tokens))?;
        Ok(if self.clean_up_spaces { clean_up(&text) } else { text })
    }
}

impl Tokens {
    /// The first token that covers the byte `at`.
    pub(crate) fn covering(&self, at: usize) -> Option<usize> {
        self.offsets.iter().position(|(start, end)| (*start..*end).contains(&at))
    }
}

/// A backtracking expression in a tokenizer can panic in the library.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, DataError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(DataError::Tokenize { reason: error.to_string() }),
        Err(_) => Err(DataError::Tokenize { reason: "it panicked on this text".to_owned() }),
    }
}

fn longest_token(tokenizer: &tokenizers::Tokenizer) -> Option<usize> {
    tokenizer.get_vocab(true).into_keys().map(|token| token.len()).max()
}

pub(crate) fn optional_json(path: &Path) -> Result<Option<Value>, DataError> {
    let Some(text) = read_bounded(path, MAX_SETTINGS_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|error| DataError::BadTokenizer {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What transformers does where `clean_up_tokenization_spaces` is set.
fn clean_up(text: &str) -> String {
    [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"]
        .into_iter()
        .fold(text.to_owned(), |text, from| text.replace(from, from.trim_matches(' ')))
}
