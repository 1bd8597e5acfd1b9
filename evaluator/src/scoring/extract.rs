//! The part of an answer that is scored.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Which part of an answer is scored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// All of it.
    #[default]
    Whole,
    /// The last line that is not blank.
    LastLine,
    /// What stands in the last `\boxed{…}`.
    Boxed,
    /// The last block between fences, ` ``` ` or `~~~`; all of an answer that has none.
    Fenced,
    /// What follows the last occurrence of this marker.
    After(String),
}

impl Extract {
    /// The part; `None` where the answer has no such part.
    pub fn of<'a>(&self, answer: &'a str) -> Option<&'a str> {
        match self {
            Self::Whole => Some(answer),
            Self::LastLine => answer.lines().map(str::trim).rfind(|line| !line.is_empty()),
            Self::Boxed => boxed(answer),
            Self::Fenced => Some(fenced(answer).unwrap_or(answer)),
            Self::After(marker) => {
                answer.rfind(marker.as_str()).map(|at| &answer[at + marker.len()..])
            }
        }
    }
}

/// What the last `boxed{` holds up to the brace that closes it. Braces after a backslash are text.
fn boxed(answer: &str) -> Option<&str> {
    let start = answer.rfind("boxed{")? + "boxed{".len();
    let mut depth = 1;
    let mut escaped = false;
    for (at, byte) in answer[start..].bytes().enumerate() {
        match byte {
            _ if escaped => {}
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&answer[start..start + at]);
        }
        escaped = byte == b'\\' && !escaped;
    }
    None
}

/// The lines of the last block between fences. One that never closes goes to the end.
fn fenced(answer: &str) -> Option<&str> {
    let mut last = None;
    let mut open: Option<(u8, usize, usize)> = None;
    let mut at = 0;
    for line in answer.split_inclusive('\n') {
        let next = at + line.len();
        match (open, fence(line)) {
            (None, Some((mark, length, _))) => open = Some((mark, length, next)),
            (Some((mark, length, start)), Some((closes, closing_length, true)))
                if closes == mark && closing_length >= length =>
            {
                last = Some(&answer[start..at]);
                open = None;
            }
            _ => {}
        }
        at = next;
    }
    open.map(|(_, _, start)| &answer[start..]).or(last)
}

/// Mark and length of the fence that a line is, and whether nothing follows it.
fn fence(line: &str) -> Option<(u8, usize, bool)> {
    let text = line.trim_start_matches(' ');
    let mark = text.bytes().next().filter(|byte| matches!(byte, b'`' | b'~'))?;
    let length = text.bytes().take_while(|byte| *byte == mark).count();
    let rest = text[length..].trim();
    let fits = mark == b'~' || !rest.contains('`');
    (fits && length >= 3 && line.len() - text.len() <= 3).then_some((mark, length, rest.is_empty()))
}

/// The answer without what it was reasoned with.
///
/// What stands between `<think>` and `</think>` goes. Where the reasoning was opened by the prompt,
/// all before `</think>` goes; where it was cut off, all after `<think>`.
pub(super) fn without_thinking(answer: &str) -> Cow<'_, str> {
    if !answer.contains("<think>") && !answer.contains("</think>") {
        return Cow::Borrowed(answer);
    }
    let mut spoken = String::new();
    let (mut thinking, mut start) = (false, 0);
    for (at, tag) in answer.match_indices("think>") {
        if answer[..at].ends_with("</") {
            if !thinking {
                spoken.clear();
            }
            (thinking, start) = (false, at + tag.len());
        } else if answer[..at].ends_with('<') && !thinking {
            spoken.push_str(&answer[start..at - 1]);
            thinking = true;
        }
    }
    if !thinking {
        spoken.push_str(&answer[start..]);
    }
    Cow::Owned(spoken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_asked_for_is_found() {
        let after = Extract::After("####".to_owned());
        let cases = [
            (&Extract::Whole, " a ", Some(" a ")),
            (&Extract::LastLine, "a\n b \r\n\n", Some("b")),
            (&Extract::LastLine, " \n", None),
            (&Extract::Boxed, r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$.", Some(r"\frac{1}{2}")),
            (&Extract::Boxed, r"\boxed{\{1\}}", Some(r"\{1\}")),
            (&Extract::Boxed, r"\boxed{1\\}", Some(r"1\\")),
            (&Extract::Boxed, r"\boxed{1", None),
            (&Extract::Boxed, "1", None),
            (&Extract::Fenced, "{}", Some("{}")),
            (&Extract::Fenced, "Here:\n```json\n{\n}\n```\nDone.", Some("{\n}\n")),
            (&Extract::Fenced, "```\na\n```\n~~~\nb\n```\n~~~", Some("b\n```\n")),
            (&Extract::Fenced, "````\n```\n````", Some("```\n")),
            (&Extract::Fenced, "```rust\nfn", Some("fn")),
            (&Extract::Fenced, "```a``` b", Some("```a``` b")),
            (&Extract::Fenced, "    ```\na", Some("    ```\na")),
            (&after, "#### 1 #### 2", Some(" 2")),
            (&after, "2", None),
        ];
        for (extract, answer, part) in cases {
            assert_eq!(extract.of(answer), part, "{extract:?} of {answer:?}");
        }
    }

    #[test]
    fn reasoning_goes() {
        let cases = [
            ("42", "42"),
            ("<think>6 · 7</think>42", "42"),
            ("Well. <think>6</think>4<think>7</think>2", "Well. 42"),
            ("6 · 7\n</think>\n42", "\n42"),
            ("42<think>or", "42"),
            ("<think>a</think>b</think>c", "c"),
            ("<think><think>a</think>b", "b"),
        ];
        for (answer, spoken) in cases {
            assert_eq!(without_thinking(answer), spoken, "{answer}");
        }
    }

    #[test]
    fn an_extract_is_a_word_or_a_marker() {
        let read = |text: &str| serde_json::from_str::<Extract>(text);
        assert_eq!(read("\"last_line\"").unwrap(), Extract::LastLine);
        assert_eq!(read("{\"after\": \"=\"}").unwrap(), Extract::After("=".to_owned()));
        let error = read("\"first_line\"").unwrap_err().to_string();
        assert!(error.contains("`last_line`, `boxed`, `fenced`, `after`"), "{error}");
    }
}
