//! An answer's text as it comes: only what no later token can change or take back.
//!
//! The text of some tokens is not the sum of their texts: a character may be spread over several, a
//! space at the beginning goes, and with `clean_up_tokenization_spaces` one before a full stop. So a
//! window of the newest tokens is decoded as a whole with each token, and of its text only what is
//! sure is handed on. What might be the beginning of a stop string waits too.
//!
//! Some tokenizers have tokens of single bytes, and spell a whole run of them as broken characters as
//! long as the run is not valid: one byte more takes back whole characters that were said. What was
//! said stays said; where the run does not become whole again, the text goes on behind it.

use chandler_data::Tokenizer;

/// Tokens of the window before it is moved on.
const MOST_WINDOW: usize = 48;
/// Tokens that it keeps then, so that what comes is decoded in the company of what was before.
const LEAST_WINDOW: usize = 8;
/// The longest text that cleaning up takes the space from, such as ` n't`.
const LONGEST_CLEANED: usize = 4;

/// Turns tokens into text.
pub(crate) trait Decoder {
    /// `None` where the library gives up on them.
    fn text_of(&self, ids: &[u32]) -> Option<String>;
    /// Whether a space at the end may still go.
    fn cleans_up(&self) -> bool;
}

impl Decoder for Tokenizer {
    fn text_of(&self, ids: &[u32]) -> Option<String> {
        self.decode(ids, true).ok()
    }

    fn cleans_up(&self) -> bool {
        self.cleans_up_spaces()
    }
}

/// Text that is sure, from tokens.
#[derive(Debug, Default)]
struct Deltas {
    window: Vec<u32>,
    /// What was handed on of the window's text.
    said: String,
    /// Tokens at the window's beginning whose text that is.
    told: usize,
}

impl Deltas {
    fn push(&mut self, decoder: &dyn Decoder, id: u32) -> String {
        self.window.push(id);
        let Some(mut text) = decoder.text_of(&self.window) else { return String::new() };
        let mut sure = sure_bytes(&text, decoder.cleans_up());
        if sure < self.said.len() {
            // What is broken at the end may become what was said, and more.
            return String::new();
        }
        if !text.starts_with(&self.said) {
            let Some(behind) = self.begin_behind(decoder) else { return String::new() };
            text = behind;
            sure = sure_bytes(&text, decoder.cleans_up());
        }
        let new = text.get(self.said.len()..sure).unwrap_or_default().to_owned();
        self.said.push_str(&new);
        if sure == text.len() {
            self.told = self.window.len();
            if self.window.len() >= MOST_WINDOW {
                self.move_on(decoder, &text);
            }
        }
        new
    }

    /// What was not sure and comes now, since nothing else does.
    fn finish(&mut self, decoder: &dyn Decoder) -> String {
        let Some(mut text) = decoder.text_of(&self.window) else { return String::new() };
        if !text.starts_with(&self.said) {
            let Some(behind) = self.begin_behind(decoder) else { return String::new() };
            text = behind;
        }
        let rest = text.get(self.said.len()..).unwrap_or_default().to_owned();
        (self.said, self.told) = (text, self.window.len());
        rest
    }

    /// Lets go of the tokens that were told, since those behind them changed their text, and returns
    /// the text of the others alone.
    fn begin_behind(&mut self, decoder: &dyn Decoder) -> Option<String> {
        self.window.drain(..self.told);
        self.said.clear();
        self.told = 0;
        decoder.text_of(&self.window)
    }

    /// Lets go of the older tokens, where the newer ones have the same text without them.
    fn move_on(&mut self, decoder: &dyn Decoder, text: &str) {
        for start in self.window.len() - LEAST_WINDOW..self.window.len() {
            let Some(end) = decoder.text_of(&self.window[start..]) else { continue };
            let begins_within = end.starts_with(char::REPLACEMENT_CHARACTER);
            if !end.is_empty() && !begins_within && text.ends_with(&end) {
                self.window.drain(..start);
                (self.said, self.told) = (end, self.window.len());
                return;
            }
        }
    }
}

/// Bytes at the beginning of a text that later tokens leave as they are.
fn sure_bytes(text: &str, cleans_up: bool) -> usize {
    let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
    let space = whole.rfind(' ').filter(|at| cleans_up && whole.len() - at < LONGEST_CLEANED);
    space.unwrap_or(whole.len())
}

/// Holds back what may be the beginning of a stop string.
#[derive(Debug)]
struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// What can be handed on of the text so far, and whether it ends there.
    fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |at: &usize| {
            let tail = &self.held[*at..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let mut places = self.held.char_indices().map(|(at, _)| at).skip_while(|at| *at < from);
        let at = places.find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

/// One answer on its way to a client.
#[derive(Debug)]
pub(crate) struct Speech {
    deltas: Deltas,
    stops: Stops,
}

impl Speech {
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = Stops { stops: stops.to_vec(), held: String::new() };
        Self { deltas: Deltas::default(), stops }
    }

    /// What can be said after this token, and whether a stop string ends the answer.
    pub(crate) fn push(&mut self, decoder: &dyn Decoder, id: u32) -> (String, bool) {
        let new = self.deltas.push(decoder, id);
        self.stops.push(&new)
    }

    /// What was held back, and whether a stop string stands in it.
    pub(crate) fn finish(&mut self, decoder: &dyn Decoder) -> (String, bool) {
        let rest = self.deltas.finish(decoder);
        let (mut text, stopped) = self.stops.push(&rest);
        if !stopped {
            text.push_str(&std::mem::take(&mut self.stops.held));
        }
        (text, stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Each token is some bytes; what is no UTF-8 is replaced, as by a tokenizer of bytes.
    struct OfBytes(Vec<&'static [u8]>, bool);

    impl Decoder for OfBytes {
        fn text_of(&self, ids: &[u32]) -> Option<String> {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| self.0[*id as usize]).copied().collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Some(if self.1 { text.replace(" .", ".").replace(" n't", "n't") } else { text })
        }

        fn cleans_up(&self) -> bool {
            self.1
        }
    }

    /// A tokenizer with tokens of single bytes: a run of them that is no UTF-8 is broken as a whole.
    struct WithBytes(Vec<Result<&'static str, u8>>);

    impl Decoder for WithBytes {
        fn text_of(&self, ids: &[u32]) -> Option<String> {
            let end_run = |run: &mut Vec<u8>| match String::from_utf8(std::mem::take(run)) {
                Ok(whole) => whole,
                Err(error) => "\u{FFFD}".repeat(error.as_bytes().len()),
            };
            let (mut text, mut run) = (String::new(), vec![]);
            for id in ids {
                match self.0[*id as usize] {
                    Ok(word) => text += &(end_run(&mut run) + word),
                    Err(byte) => run.push(byte),
                }
            }
            Some(text + &end_run(&mut run))
        }

        fn cleans_up(&self) -> bool {
            false
        }
    }

    fn said(decoder: &dyn Decoder, ids: &[u32], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut speech = Speech::new(&stops);
        let mut parts = vec![];
        for id in ids {
            let (text, stopped) = speech.push(decoder, *id);
            parts.push(text);
            if stopped {
                return (parts, true);
            }
        }
        let (rest, stopped) = speech.finish(decoder);
        parts.push(rest);
        (parts, stopped)
    }

    #[test]
    fn a_character_comes_whole() {
        let decoder = OfBytes(vec![b"a", b"\xE2", b"\x82", b"\xAC", b"b"], false);
        let (parts, _) = said(&decoder, &[0, 1, 2, 3, 4], &[]);
        assert_eq!(parts, ["a", "", "", "€", "b", ""]);
        let (parts, _) = said(&decoder, &[0, 1, 2], &[]);
        assert_eq!(parts.concat(), "a\u{FFFD}", "what stays broken is said at the end");
        let (parts, _) = said(&decoder, &[1, 4], &[]);
        assert_eq!(parts, ["", "\u{FFFD}b", ""]);
    }

    /// A stray byte takes back the character before it; what follows is said all the same.
    #[test]
    fn a_run_of_bytes_that_is_spoilt_loses_nothing_behind_it() {
        let bytes = [0xF0, 0x9F, 0x99, 0x82, 0xE2, 0x82, 0xAC].map(Err);
        let words = [Ok("Hello"), Ok(" and"), Ok(" more")];
        let decoder = WithBytes(words.into_iter().chain(bytes).collect());
        let (parts, _) = said(&decoder, &[0, 3, 4, 5, 6, 7, 1, 2], &[]);
        assert_eq!(parts, ["Hello", "", "", "", "🙂", "", "\u{FFFD} and", " more", ""]);
        let (parts, _) = said(&decoder, &[0, 3, 4, 5, 6, 7], &[]);
        assert_eq!(parts.concat(), "Hello🙂\u{FFFD}", "the end is told too");
        let (parts, _) = said(&decoder, &[0, 3, 4, 5, 6, 7, 8, 9, 1], &[]);
        assert_eq!(parts.concat(), "Hello🙂€ and", "the run became whole again");
        let often = [3, 4, 5, 6, 7, 1].repeat(30);
        let (parts, _) = said(&decoder, &often, &[]);
        assert_eq!(parts.concat(), "🙂\u{FFFD} and".repeat(30));
    }

    #[test]
    fn no_part_of_a_stop_string_leaks() {
        let decoder = OfBytes(vec![b"x", b"EN", b"D", b"DED", b" E", b"STOP"], false);
        for (ids, stops, expected, stopped) in [
            (&[0, 1, 2, 0][..], &["END"][..], "x", true),
            (&[0, 4, 0], &["END"], "x Ex", false),
            (&[0, 1], &["END"], "xEN", false),
            (&[0, 1, 3], &["END"], "x", true),
            (&[0, 4, 1, 2], &["END", "STOP"], "x E", true),
            (&[1, 5, 2], &["ENS", "NST"], "", true),
        ] {
            let (parts, found) = said(&decoder, ids, stops);
            assert_eq!((parts.concat().as_str(), found), (expected, stopped), "{ids:?} {stops:?}");
        }
        let (parts, _) = said(&decoder, &[0, 1, 0], &["END"]);
        assert_eq!(parts, ["x", "", "ENx", ""]);
    }

    #[test]
    fn a_space_that_may_go_waits() {
        let decoder = OfBytes(vec![b"so", b" ", b".", b" do", b" n", b"'t", b"o"], true);
        for (ids, expected) in
            [(&[0, 1, 2][..], "so."), (&[0, 3, 4, 5], "so don't"), (&[0, 4, 6], "so no")]
        {
            assert_eq!(said(&decoder, ids, &[]).0.concat(), expected);
        }
    }

    /// In parts and at once, any tokens of real tokenizers have the same text.
    #[test]
    fn the_parts_are_the_whole() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/models");
        for name in ["qwen3", "smol-llama", "gemma3", "mistral", "llama-gqa"] {
            let tokenizer = Tokenizer::open(&goldens.join(name)).unwrap();
            let size = tokenizer.vocab_size() as u32;
            let text =
                "A test, isn't it? 你好 🙂 naïve — done . \n\n  indented\tand so on, ".repeat(9);
            let ids = tokenizer.encode(&text, false).unwrap();
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(said(&tokenizer, &ids, &[]).0.concat(), whole, "{name}");
            let any: Vec<u32> = (0..600u32).map(|i| i.wrapping_mul(2_654_435_761) % size).collect();
            // Broken characters between whole ones are told apart by the whole run alone.
            let clean = |text: &str| text.replace(char::REPLACEMENT_CHARACTER, "");
            let (found, whole) =
                (said(&tokenizer, &any, &[]).0.concat(), tokenizer.decode(&any, true).unwrap());
            assert_eq!(clean(&found), clean(&whole), "{name}");
        }
    }
}
