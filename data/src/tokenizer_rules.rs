//! What a decoder of `tokenizer.json` may do, since answers are decoded in the process that trains, and
//! what its templates must say of themselves.
//!
//! A decoder undoes what the tokenizer did to spaces and bytes. Known ones replace fixed texts by
//! short ones; an expression that backtracks, or a text that grows with each decoder of a sequence,
//! serves no purpose there.

use serde::Deserialize;
use serde_json::Value;

/// How many times longer than a token its text may become, by all decoders together.
const MAX_GROWTH: usize = 64;
/// Of a text that a decoder puts before or behind a token.
const MAX_AFFIX_BYTES: usize = 256;
/// Decoders in all.
const MAX_DECODERS: usize = 64;

/// The parts of the file that are looked at; serde_json passes over the vocabulary.
#[derive(Deserialize)]
struct Rules {
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    post_processor: Value,
}

/// Says what is wrong with decoder and post-processor, if anything is.
pub(crate) fn check(tokenizer_json: &[u8]) -> Result<(), String> {
    let rules: Rules = serde_json::from_slice(tokenizer_json).map_err(|error| error.to_string())?;
    tokens_are_told(&rules.post_processor)?;
    Budget { decoders: MAX_DECODERS, growth: 1 }.spend(&rules.decoder)
}

/// Every token that a template puts around a text must be one whose id the template gives: the library
/// panics on others as soon as it is used.
fn tokens_are_told(post_processor: &Value) -> Result<(), String> {
    let list = |key: &str| post_processor.get(key).and_then(Value::as_array).into_iter().flatten();
    for inner in list("processors") {
        tokens_are_told(inner)?;
    }
    for piece in list("single").chain(list("pair")) {
        let Some(token) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) else {
            continue;
        };
        if post_processor.get("special_tokens").and_then(|known| known.get(token)).is_none() {
            return Err(format!(
                "its template names {token:?}, and does not say which token that is"
            ));
        }
    }
    Ok(())
}

/// What the decoders of a file may still do.
struct Budget {
    decoders: usize,
    growth: usize,
}

impl Budget {
    fn spend(&mut self, decoder: &Value) -> Result<(), String> {
        let left = self.decoders.checked_sub(1);
        self.decoders = left.ok_or(format!("it has more than {MAX_DECODERS} decoders"))?;
        for inner in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
            self.spend(inner)?;
        }
        let length = |pointer: &str| decoder.pointer(pointer).and_then(Value::as_str).map(str::len);
        if length("/pattern/Regex").is_some() {
            return Err("its decoder has a regular expression, which might run for ever".to_owned());
        }
        // What these name is replaced too, and the empty text stands between all characters.
        if ["/suffix", "/word_delimiter_token", "/pad_token"]
            .iter()
            .any(|key| length(key) == Some(0))
        {
            return Err("its decoder replaces the empty text".to_owned());
        }
        if let (Some(from), Some(to)) = (length("/pattern/String"), length("/content")) {
            if from == 0 {
                return Err("its decoder replaces the empty text".to_owned());
            }
            self.growth = self.growth.saturating_mul(to.div_ceil(from).max(1));
        }
        if self.growth > MAX_GROWTH {
            return Err(format!("its decoder makes tokens more than {MAX_GROWTH} times longer"));
        }
        let affixes = ["/prefix", "/suffix", "/replacement"].into_iter().filter_map(length);
        match affixes.max() {
            Some(bytes) if bytes > MAX_AFFIX_BYTES => {
                Err(format!("its decoder adds {bytes} bytes, and {MAX_AFFIX_BYTES} are the most"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(decoder: Value) -> Option<String> {
        let file = json!({ "version": "1.0", "decoder": decoder, "model": { "vocab": {} } });
        check(file.to_string().as_bytes()).err()
    }

    fn replace(from: &str, to: &str) -> Value {
        json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
    }

    fn sequence(decoders: Vec<Value>) -> Value {
        json!({ "type": "Sequence", "decoders": decoders })
    }

    #[test]
    fn a_template_says_which_tokens_it_puts_around_a_text() {
        let template = |special: Value| {
            json!({
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }],
                "special_tokens": special,
            })
        };
        let said = |post_processor: Value| {
            let file = json!({ "version": "1.0", "post_processor": post_processor });
            check(file.to_string().as_bytes()).err()
        };
        let known = json!({ "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } });
        assert_eq!(said(template(known)), None);
        assert_eq!(said(Value::Null), None);
        let within = json!({ "type": "Sequence", "processors": [template(json!({}))] });
        for bad in [template(json!({})), template(Value::Null), within] {
            assert!(said(bad).unwrap().contains("names \"<s>\""));
        }
    }

    #[test]
    fn decoders_in_use_pass_and_endless_ones_do_not() {
        let space = replace("▁", " ");
        assert_eq!(said(Value::Null), None);
        assert_eq!(said(json!({ "type": "ByteLevel", "add_prefix_space": true })), None);
        assert_eq!(said(sequence(vec![space.clone(), json!({ "type": "Fuse" })])), None);
        let regex = json!({ "type": "Replace", "pattern": { "Regex": "(a+)+$" }, "content": "" });
        let hidden = sequence(vec![space.clone(), sequence(vec![regex])]);
        assert!(said(hidden).unwrap().contains("regular expression"));
        assert!(said(replace("a", &"x".repeat(2000))).unwrap().contains("times longer"));
        let doubling = vec![replace("a", "aa"); 7];
        assert!(said(sequence(doubling)).unwrap().contains("times longer"));
        assert!(said(replace("", "x")).unwrap().contains("empty text"));
        assert!(said(sequence(vec![space; 100])).unwrap().contains("more than 64"));
        let affix = json!({ "type": "WordPiece", "prefix": "#".repeat(300) });
        assert!(said(affix).unwrap().contains("300 bytes"));
        let endings = json!({ "type": "BPEDecoder", "suffix": "" });
        assert!(said(sequence(vec![endings; 9])).unwrap().contains("empty text"));
        let words = json!({
            "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "", "cleanup": true
        });
        assert!(said(words).unwrap().contains("empty text"));
        assert_eq!(said(json!({ "type": "BPEDecoder", "suffix": "</w>" })), None);
        assert!(check(b"{").is_err());
    }
}
