//! Text of strangers made visible: no character of it moves a cursor, changes a colour or turns the
//! direction of what stands beside it.
//!
//! This is the last step before a terminal or a log: [`visible`] for text on several lines,
//! [`visible_line`] for names, [`visible_json`] for JSON, whose values stay what they are, and
//! [`visible_painted`] where colours of ours stand between.

use std::fmt::Write;
use std::path::Path;

/// Colours that the program itself paints with, as it and `tracing` write them.
const COLOURS: [&str; 12] = [
    "\u{1b}[0m",
    "\u{1b}[1m",
    "\u{1b}[2m",
    "\u{1b}[3m",
    "\u{1b}[31m",
    "\u{1b}[32m",
    "\u{1b}[33m",
    "\u{1b}[34m",
    "\u{1b}[35m",
    "\u{1b}[1;31m",
    "\u{1b}[1;36m",
    "\u{1b}[36m",
];

/// Whether a character does something instead of being seen, line ends and tabs excepted.
fn acts(c: char) -> bool {
    let turns_direction = matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let ends_line = matches!(c, '\u{2028}' | '\u{2029}');
    turns_direction || ends_line || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Text whose control characters are spelt out, as `\u{1b}`; lines and tabs stay.
pub(crate) fn visible(text: &str) -> String {
    spelt_out(text, acts)
}

/// As [`visible`], on one line.
pub(crate) fn visible_line(text: &str) -> String {
    spelt_out(text, |c| acts(c) || matches!(c, '\n' | '\t'))
}

/// A path on one line: a name with a line end in it must not look like a line of its own.
pub(crate) fn visible_path(path: &Path) -> String {
    visible_line(&path.to_string_lossy())
}

fn spelt_out(text: &str, acts: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// As [`visible`], but colours of ours stay. Text of strangers within has to be made visible before
/// it is painted.
pub(crate) fn visible_painted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        shown += &visible(&rest[..at]);
        rest = &rest[at..];
        let colour = COLOURS.into_iter().find(|colour| rest.starts_with(colour));
        shown += &colour.map_or_else(|| visible("\u{1b}"), str::to_owned);
        rest = &rest[colour.map_or(1, str::len)..];
    }
    shown + &visible(rest)
}

/// JSON with the same values, in which what acts is written as JSON escapes.
pub(crate) fn visible_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        // Of these, a writer of JSON puts none but line ends outside of strings.
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}[2J\r\u{7}\u{9b}31m\u{202e}b\u{2066}\u{7f}\u{8}\u{85}\u{2028}c";

    #[test]
    fn nothing_acts_any_more() {
        for shown in [visible(EVIL), visible_line(EVIL), visible_painted(EVIL), visible_json(EVIL)]
        {
            assert!(!shown.chars().any(acts), "{shown:?}");
        }
        assert_eq!(visible("a\u{1b}[1mb\tc\n"), "a\\u{1b}[1mb\tc\n");
        assert_eq!(visible_line("a\nb\tc"), "a\\u{a}b\\u{9}c");
        let honest = "naïve 北京 😀 שלום\u{200f} a\u{301}\n";
        assert_eq!(visible(honest), honest);
    }

    #[test]
    fn colours_of_ours_stay_and_no_other_sequence() {
        let painted = format!("\u{1b}[1;31merror\u{1b}[0m: {}\n", visible(EVIL));
        assert_eq!(visible_painted(&painted), painted);
        assert_eq!(visible_painted("\u{1b}[8mhidden"), "\\u{1b}[8mhidden");
        assert_eq!(visible_painted("x\u{1b}"), "x\\u{1b}");
    }

    #[test]
    fn json_keeps_its_values() {
        let value = serde_json::json!({ EVIL: [EVIL, "plain 😀"] });
        for json in [value.to_string(), format!("{value:#}\n")] {
            let shown = visible_json(&json);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
