//! The tokenizer in the metadata: tokens, their kinds, and how text is cut into them.

use std::path::Path;

use serde_json::Value as Json;

use super::GgufError;
use super::chat::{optional_json, template};
use super::format::{Entries, Value};
use super::merges::Merging;
use super::tokenizer_json::TokenizerJson;
use crate::config::ModelConfig;

/// `llama_token_type` of `llama.h`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A score that no merge has.
const NEVER_MERGED: f32 = -1e9;

/// Adds the tokenizer and the chat template of `folder` to the metadata.
pub(super) fn describe(
    folder: &Path,
    config: &ModelConfig,
    metadata: &mut Entries,
) -> Result<(), GgufError> {
    let tokenizer = TokenizerJson::read(folder)?;
    let settings = optional_json(folder, "tokenizer_config.json")?;
    let merging = Merging::of(&tokenizer)?;
    let are_pieces = matches!(merging, Merging::Pieces { .. });
    let (tokens, kinds) = tokens(&tokenizer, config.vocab_size, are_pieces)?;
    match merging {
        Merging::Bytes(name) => {
            metadata.push("tokenizer.ggml.model", Value::text("gpt2"));
            metadata.push("tokenizer.ggml.pre", Value::text(name));
            let merge = |(left, right): &(String, String)| format!("{left} {right}");
            let merges = tokenizer.merges.iter().map(merge).collect();
            metadata.push("tokenizer.ggml.merges", Value::Texts(merges));
        }
        Merging::Pieces { scores, add_space_prefix } => {
            metadata.push("tokenizer.ggml.model", Value::text("llama"));
            metadata.push("tokenizer.ggml.pre", Value::text("default"));
            metadata.push("tokenizer.ggml.add_space_prefix", Value::Bool(add_space_prefix));
            let score = |token: &String| scores.get(token).copied().unwrap_or(NEVER_MERGED);
            let scores = tokens.iter().map(score).collect();
            metadata.push("tokenizer.ggml.scores", Value::Floats(scores));
        }
    }
    metadata.push("tokenizer.ggml.tokens", Value::Texts(tokens));
    metadata.push("tokenizer.ggml.token_type", Value::Ints(kinds));
    special(&tokenizer, &settings, config, metadata)?;
    if let Some(template) = template(folder)? {
        metadata.push("tokenizer.chat_template", Value::text(template));
    }
    Ok(())
}

/// Every row of the embedding table as a token, and what kind it is.
///
/// llama.cpp looks for added tokens in text as it came, before SentencePiece's `▁` stands in it for
/// a space.
fn tokens(
    tokenizer: &TokenizerJson,
    vocab_size: usize,
    are_pieces: bool,
) -> Result<(Vec<String>, Vec<i32>), GgufError> {
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocab_size];
    let model = &tokenizer.raw.model;
    let kind = |token: &str| match token {
        _ if model.unk_token.as_deref() == Some(token) && model.byte_fallback => UNKNOWN,
        _ if model.byte_fallback && is_byte(token) => BYTE,
        _ => NORMAL,
    };
    let plain = model.vocab.iter().map(|(token, id)| (token.clone(), *id, kind(token)));
    let added = tokenizer.raw.added_tokens.iter().map(|added| {
        let token = &added.content;
        let (token, kind) = if kind(token) == UNKNOWN {
            (token.clone(), UNKNOWN)
        } else if added.special || looks_special(token) {
            (token.clone(), CONTROL)
        } else if are_pieces {
            (token.replace('▁', " "), USER_DEFINED)
        } else {
            (token.clone(), USER_DEFINED)
        };
        (token, added.id, kind)
    });
    for (token, id, kind) in plain.chain(added) {
        let row = tokens.get_mut(id as usize).ok_or_else(|| {
            tokenizer.refused(format!("token {id} has no row among the model's {vocab_size}"))
        })?;
        *row = Some((token, kind));
    }
    let named = tokens.into_iter().enumerate();
    Ok(named.map(|(id, row)| row.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip())
}

/// Whether an added token is one that its authors forgot to mark as special, by the list of
/// llama.cpp's converter (DeepSeek, Command R and Gemma have such).
fn looks_special(token: &str) -> bool {
    let within = |begin: &str, end: &str| token.starts_with(begin) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Adds which tokens begin, end and fill a text, and whether they are added to one.
fn special(
    tokenizer: &TokenizerJson,
    settings: &Json,
    config: &ModelConfig,
    metadata: &mut Entries,
) -> Result<(), GgufError> {
    let named = |key: &str| {
        let token = &settings[format!("{key}_token")];
        let token = token.as_str().or_else(|| token["content"].as_str());
        let configured = config.raw[format!("{key}_token_id")].as_u64();
        token
            .and_then(|token| tokenizer.id_of(token))
            .or(configured.and_then(|id| u32::try_from(id).ok()))
            .filter(|id| (*id as usize) < config.vocab_size)
    };
    let (bos, eos) = (named("bos"), named("eos"));
    let ids = [
        ("bos", bos),
        ("eos", eos.or(config.eos_token_ids.first().copied())),
        ("unknown", named("unk")),
        ("padding", named("pad")),
    ];
    for (key, id) in ids {
        if let Some(id) = id {
            metadata.push(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
    }
    let (add_bos, add_eos) = added_around(tokenizer, bos, eos)?;
    metadata.push("tokenizer.ggml.add_bos_token", Value::Bool(add_bos));
    metadata.push("tokenizer.ggml.add_eos_token", Value::Bool(add_eos));
    Ok(())
}

/// Whether the post-processor puts the first and the last token around a text.
fn added_around(
    tokenizer: &TokenizerJson,
    bos: Option<u32>,
    eos: Option<u32>,
) -> Result<(bool, bool), GgufError> {
    let nothing = Json::Null;
    let processor = tokenizer.raw.post_processor.as_ref().unwrap_or(&nothing);
    let parts = match processor["processors"].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![processor],
    };
    let mut around = (false, false);
    for part in parts {
        match part["type"].as_str() {
            None | Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let pieces = part["single"].as_array().map_or(&[][..], Vec::as_slice);
                let id = |piece: &Json| tokenizer.id_of(piece["SpecialToken"]["id"].as_str()?);
                let is_text = |piece: &Json| piece.get("Sequence").is_some();
                let first = |piece: &Json| id(piece).is_some() && id(piece) == bos;
                let last = |piece: &Json| id(piece).is_some() && id(piece) == eos;
                around = match pieces {
                    [text] if is_text(text) => (false, false),
                    [begin, text] if first(begin) && is_text(text) => (true, false),
                    [text, end] if is_text(text) && last(end) => (false, true),
                    [begin, text, end] if first(begin) && is_text(text) && last(end) => {
                        (true, true)
                    }
                    _ => {
                        let reason = "it puts other tokens around a text than its first and last";
                        return Err(tokenizer.refused(reason));
                    }
                };
            }
            Some(_) => {
                return Err(tokenizer.refused("it puts tokens around a text in an unknown way"));
            }
        }
    }
    Ok(around)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    #[test]
    fn added_tokens_stand_as_text_has_them_and_special_ones_are_seen() {
        let added = ["▁▁", "<unused7>", "<|end|>", "<mask>", "[@BOS@]", "<s>", "plain|>"];
        let added: Vec<Json> = added
            .iter()
            .enumerate()
            .map(
                |(at, token)| json!({ "id": at + 2, "content": token, "special": *token == "<s>" }),
            )
            .collect();
        let raw = json!({
            "added_tokens": added,
            "model": { "type": "BPE", "vocab": { "▁a": 0, "b": 1 } },
        });
        let raw = serde_json::from_value(raw).unwrap();
        let tokenizer = TokenizerJson { path: PathBuf::new(), raw, merges: vec![] };
        let (found, kinds) = tokens(&tokenizer, 10, true).unwrap();
        assert_eq!(found[0], "▁a", "what is merged keeps its mark");
        assert_eq!(found[2], "  ");
        assert_eq!(found[9], "[PAD9]");
        let expected = [
            NORMAL,
            NORMAL,
            USER_DEFINED,
            CONTROL,
            CONTROL,
            CONTROL,
            CONTROL,
            CONTROL,
            USER_DEFINED,
            UNUSED,
        ];
        assert_eq!(kinds, expected);
        let (found, _) = tokens(&tokenizer, 10, false).unwrap();
        assert_eq!(found[2], "▁▁", "over bytes, the character is itself");
    }
}
