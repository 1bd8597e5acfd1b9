//! One line of a log file: what was logged, or what stands there instead.

use std::fmt::Write;

use clap::ValueEnum;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use crate::visible::{visible, visible_line};

/// Bytes of a line that are looked at. A longer one is none that was logged.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// Characters of a line that is none of ours.
const FOREIGN_CHARS: usize = 500;

/// How bad it is; later is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::Trace, "TRACE", "35"),
        (Self::Debug, "DEBUG", "34"),
        (Self::Info, "INFO", "32"),
        (Self::Warn, "WARN", "33"),
        (Self::Error, "ERROR", "31"),
    ];

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, name, _)| *name == word).map(|(level, ..)| level)
    }
}

/// A line of a log file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LogLine {
    /// A JSON object with a level and a message.
    Logged { level: Level, fields: Map<String, Value> },
    /// Anything else, as text.
    Foreign(String),
}

impl LogLine {
    /// Reads a line, of which `beyond` more bytes were left out.
    pub(super) fn parse(bytes: &[u8], beyond: u64) -> Self {
        let logged = || {
            let fields: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
            let level = Level::parse(fields.get("level")?.as_str()?)?;
            fields.get("message")?.as_str()?;
            Some(Self::Logged { level, fields })
        };
        if let Some(line) = (beyond == 0).then(logged).flatten() {
            return line;
        }
        let text = String::from_utf8_lossy(bytes);
        let shown: String = text.chars().take(FOREIGN_CHARS).collect();
        let left_out = (text.len() - shown.len()) as u64 + beyond;
        let more =
            if left_out > 0 { format!("… ({left_out} bytes more)") } else { String::new() };
        Self::Foreign(shown + &more)
    }

    /// How bad it is, where the line says so.
    pub(super) fn level(&self) -> Option<Level> {
        match self {
            Self::Logged { level, .. } => Some(*level),
            Self::Foreign(_) => None,
        }
    }

    /// As the terminal shows a log line, with the date; in one piece, with its line end.
    pub(super) fn painted(&self, colour: bool, zone: &TimeZone) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let (level, fields) = match self {
            Self::Foreign(text) => {
                return format!("{} {}\n", paint("31", "not a log line:"), visible_line(text));
            }
            Self::Logged { level, fields } => (*level, fields),
        };
        let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
        let time = text("timestamp").parse::<jiff::Timestamp>().map_or_else(
            |_| "at an unknown time".to_owned(),
            |time| time.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        );
        let name = Level::ALL.into_iter().find(|(known, ..)| *known == level);
        let (_, name, code) = name.unwrap_or(Level::ALL[0]);
        let mut line = format!(
            "{} {} {}",
            paint("2", &time),
            paint(code, &format!("{name:>5}")),
            visible(text("message"))
        );
        for (key, value) in fields {
            if !matches!(key.as_str(), "timestamp" | "level" | "message" | "target") {
                let pair = visible_line(&format!("{key}={value}"));
                let _ = write!(line, " {}", paint("2", &pair));
            }
        }
        line.push('\n');
        line
    }

    /// As one JSON object on one line.
    pub(super) fn as_json(&self) -> String {
        let value = match self {
            Self::Logged { fields, .. } => Value::Object(fields.clone()),
            Self::Foreign(text) => json!({ "unreadable": text }),
        };
        format!("{}\n", crate::visible::visible_json(&value.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"timestamp":"2026-03-01T12:00:05.5Z","level":"WARN","message":"a\u001b[2J\nb","step":3,"target":"t"}"#;

    #[test]
    fn a_line_reads_as_on_the_terminal() {
        let line = LogLine::parse(LINE.as_bytes(), 0);
        assert_eq!(line.level(), Some(Level::Warn));
        let plain = line.painted(false, &TimeZone::UTC);
        assert_eq!(plain, "2026-03-01 12:00:05  WARN a\\u{1b}[2J\nb step=3\n");
        let painted = line.painted(true, &TimeZone::UTC);
        assert!(painted.contains("\u{1b}[33m WARN\u{1b}[0m"), "{painted:?}");
        let again = LogLine::parse(line.as_json().trim().as_bytes(), 0);
        assert_eq!(again, line);
    }

    #[test]
    fn what_is_no_log_line_is_shown_as_such() {
        for (text, beyond) in [
            ("{\"level\":\"INFO\"", 0),
            ("[1]", 0),
            ("\u{1b}[2J", 0),
            (LINE, 7),
            ("{\"level\":3}", 0),
        ] {
            let line = LogLine::parse(text.as_bytes(), beyond);
            assert_eq!(line.level(), None, "{text}");
            let shown = line.painted(false, &TimeZone::UTC);
            assert!(shown.starts_with("not a log line: ") && !shown.contains('\u{1b}'), "{shown}");
            assert_eq!(shown.contains("bytes more"), beyond > 0);
            let json: Value = serde_json::from_str(&line.as_json()).unwrap();
            assert!(json["unreadable"].is_string());
        }
    }
}
