//! Which of llama.cpp's two ways to merge a tokenizer goes, and with what it must be told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::GgufError;
use super::tokenizer_json::TokenizerJson;

/// Patterns that llama.cpp has under a name, each as the `Split` of a tokenizer has it, and whether
/// llama.cpp takes a word that is a token without looking at merges there (`llama-vocab.cpp`).
const SPLITS: [(&str, &str, bool); 3] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        true,
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        false,
    ),
    (
        "tekken",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        true,
    ),
];

/// How text is cut.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Merging {
    /// Over bytes, words cut by a pattern that llama.cpp knows by this name (`gpt2`).
    Bytes(&'static str),
    /// As SentencePiece does it, by a score for each token (`llama`).
    Pieces {
        /// By token, for those that are merged from others.
        scores: BTreeMap<String, f32>,
        /// A text begins with a space that was not there.
        add_space_prefix: bool,
    },
}

impl Merging {
    pub(super) fn of(tokenizer: &TokenizerJson) -> Result<Self, GgufError> {
        if tokenizer.raw.model.byte_fallback {
            let add_space_prefix = space_prefix(tokenizer)?;
            return Ok(Self::Pieces { scores: scores(tokenizer)?, add_space_prefix });
        }
        let (name, ignores_merges) = pattern(tokenizer)?;
        if ignores_merges != tokenizer.raw.model.ignore_merges && !all_are_merged(tokenizer) {
            let word = if ignores_merges { "takes" } else { "merges" };
            return Err(tokenizer.refused(format!(
                "llama.cpp {word} words that are tokens under the pattern {name:?}, and it does \
                 not; some of its tokens are no merge of others"
            )));
        }
        Ok(Self::Bytes(name))
    }
}

/// The pattern's name in llama.cpp.
fn pattern(tokenizer: &TokenizerJson) -> Result<(&'static str, bool), GgufError> {
    let byte_level = |value: &Value, use_regex: bool| {
        value["type"] == "ByteLevel"
            && value["add_prefix_space"] == false
            // Left out, it is true.
            && value["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    let known = match &tokenizer.raw.pre_tokenizer {
        Some(alone) if byte_level(alone, true) => Some(("gpt-2", false)),
        Some(sequence) if sequence["type"] == "Sequence" => {
            match sequence["pretokenizers"].as_array().map(Vec::as_slice) {
                Some([split, bytes]) if split["type"] == "Split" && byte_level(bytes, false) => {
                    SPLITS
                        .iter()
                        .find(|(_, regex, _)| split["pattern"]["Regex"] == **regex)
                        .filter(|_| split["behavior"] == "Isolated" && split["invert"] != true)
                        .map(|(name, _, ignores)| (*name, *ignores))
                }
                Some([digits, bytes])
                    if digits["type"] == "Digits"
                        && digits["individual_digits"] == true
                        && byte_level(bytes, true) =>
                {
                    Some(("smollm", false))
                }
                _ => None,
            }
        }
        _ => None,
    };
    let known = known.ok_or_else(|| {
        tokenizer.refused("it cuts text into words by a pattern that is not known here")
    })?;
    // NFC is part of Qwen's tokenizers, and llama.cpp leaves it out: text is in that form as a rule.
    match &tokenizer.raw.normalizer {
        None => Ok(known),
        Some(normalizer) if normalizer["type"] == "NFC" && known.0 == "qwen2" => Ok(known),
        Some(_) => Err(tokenizer.refused("it changes text before it cuts it")),
    }
}

/// Whether every token of more than one character comes from a merge.
fn all_are_merged(tokenizer: &TokenizerJson) -> bool {
    let made: BTreeSet<String> =
        tokenizer.merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    let added: BTreeSet<&str> =
        tokenizer.raw.added_tokens.iter().map(|added| added.content.as_str()).collect();
    let mut tokens = tokenizer.raw.model.vocab.keys();
    tokens.all(|token| {
        token.chars().count() < 2 || made.contains(token) || added.contains(token.as_str())
    })
}

/// Whether a space is put before a text; refuses what SentencePiece does not do.
fn space_prefix(tokenizer: &TokenizerJson) -> Result<bool, GgufError> {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let nothing = Value::Null;
    let normalizer = tokenizer.raw.normalizer.as_ref().unwrap_or(&nothing);
    let cut = tokenizer.raw.pre_tokenizer.as_ref().unwrap_or(&nothing);
    let split_at_spaces = *normalizer == replace
        && (cut.is_null() || (cut["type"] == "Split" && cut["pattern"]["String"] == " "));
    if split_at_spaces {
        return Ok(false);
    }
    let both = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
    if *normalizer == both && cut.is_null() {
        return Ok(true);
    }
    if normalizer.is_null() && cut["type"] == "Metaspace" && cut["replacement"] == "▁" {
        match cut["prepend_scheme"].as_str() {
            Some("never") => return Ok(false),
            Some("first" | "always") => return Ok(true),
            _ => {}
        }
    }
    Err(tokenizer.refused("it changes text in a way that SentencePiece does not"))
}

/// A score for each token that is merged from others: the higher, the earlier.
///
/// SentencePiece merges any two neighbours that make a token, the highest score first. A list of
/// merges says the same where it holds every such pair, and those of a token side by side.
fn scores(tokenizer: &TokenizerJson) -> Result<BTreeMap<String, f32>, GgufError> {
    let mut scores = BTreeMap::new();
    let mut last = None;
    for (left, right) in &tokenizer.merges {
        let token = format!("{left}{right}");
        if last.as_ref() == Some(&token) {
            continue;
        }
        let score = -((scores.len() + 1) as f32);
        if scores.insert(token.clone(), score).is_some() {
            return Err(tokenizer.refused("its merges are not in SentencePiece's order"));
        }
        last = Some(token);
    }
    let vocab = &tokenizer.raw.model.vocab;
    let pairs: BTreeSet<(&str, &str)> =
        tokenizer.merges.iter().map(|(l, r)| (l.as_str(), r.as_str())).collect();
    for token in vocab.keys() {
        let parts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut made_of_tokens =
            parts.filter(|(left, right)| vocab.contains_key(*left) && vocab.contains_key(*right));
        if made_of_tokens.any(|pair| !pairs.contains(&pair)) {
            return Err(tokenizer.refused("SentencePiece would merge pairs that it does not"));
        }
    }
    Ok(scores)
}
