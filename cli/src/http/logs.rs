//! `GET /api/logs`: the newest lines of `logs/`, read from the ends of the files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::read::{Answer, Asked};
use super::reply::Refusal;
use super::routes::App;

/// Lines where the request does not say how many.
const USUAL_LINES: usize = 200;
/// Lines at most.
const MOST_LINES: usize = 2000;
/// Bytes of the files that are looked at, the newest.
const MOST_BYTES: u64 = 2 << 20;

/// So many lines that are at least so urgent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    lines: Option<usize>,
    #[serde(default)]
    level: Level,
}

/// How urgent a line is, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    #[default]
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl FromStr for Level {
    type Err = ();

    /// As `tracing` writes it.
    fn from_str(word: &str) -> Result<Self, ()> {
        Ok(match word {
            "TRACE" => Self::Trace,
            "DEBUG" => Self::Debug,
            "INFO" => Self::Info,
            "WARN" => Self::Warn,
            "ERROR" => Self::Error,
            _ => return Err(()),
        })
    }
}

/// The newest lines, the newest first.
#[derive(Debug, Default, Serialize)]
pub(super) struct LogLines {
    lines: Vec<Value>,
    /// Whether older lines were not looked at.
    more: bool,
}

pub(super) async fn logs(State(app): State<Arc<App>>, wanted: Asked<Wanted>) -> Answer<LogLines> {
    let Query(wanted) = wanted?;
    let count = wanted.lines.unwrap_or(USUAL_LINES).min(MOST_LINES);
    let folder = app.state.logs();
    let read = App::apart(move || newest_lines(&folder, count, wanted.level, MOST_BYTES)).await?;
    read.map(Json).map_err(|error| {
        let error = format!("the logs cannot be read: {error}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error, "check owner and mode of logs/")
    })
}

/// The log files, the newest first: their names have the date.
pub(super) fn log_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in folder.read_dir()? {
        let entry = entry?;
        let is_log = entry.path().extension().is_some_and(|ending| ending == "jsonl");
        if is_log && entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort_unstable_by(|a, b| b.cmp(a));
    Ok(files)
}

fn newest_lines(folder: &Path, count: usize, level: Level, most: u64) -> io::Result<LogLines> {
    let mut found = LogLines::default();
    let mut left = most;
    for path in log_files(folder)? {
        if found.lines.len() == count || left == 0 {
            found.more = true;
            break;
        }
        let (text, is_whole) = end_of(&path, left)?;
        left -= text.len() as u64;
        let mut lines = text.split(|byte| *byte == b'\n').rev();
        // A line that was cut off at its beginning is no JSON, and left out with those before it.
        let wanted = lines.by_ref().filter_map(|line| at_least(level, line));
        found.lines.extend(wanted.take(count - found.lines.len()));
        found.more |= !is_whole || lines.next().is_some();
    }
    Ok(found)
}

/// The last bytes of a file, and whether they are all that it has.
fn end_of(path: &Path, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut text = vec![];
    file.take(most).read_to_end(&mut text)?;
    Ok((text, from == 0))
}

fn at_least(level: Level, line: &[u8]) -> Option<Value> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let its: Level = line.get("level")?.as_str()?.parse().ok()?;
    (its >= level).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chandler_durable as durable;

    fn messages(found: &LogLines) -> Vec<&str> {
        found.lines.iter().filter_map(|line| line["message"].as_str()).collect()
    }

    #[test]
    fn the_newest_lines_come_first_and_reading_has_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let line = |level: &str, message: &str| {
            format!("{{\"level\":\"{level}\",\"message\":\"{message}\"}}\n")
        };
        let older = line("INFO", "a") + &line("ERROR", "b");
        let newer = line("WARN", "c") + "no JSON\n" + &line("DEBUG", "d") + "{\"level\":\"INFO\"";
        let put = |name: &str, text: &str| {
            durable::write(&folder.path().join(name), text.as_bytes()).unwrap();
        };
        put("chandler.2026-01-01.jsonl", &older);
        put("chandler.2026-01-02.jsonl", &newer);
        put("notes.txt", "not ours");
        let read = |count, level, most| newest_lines(folder.path(), count, level, most).unwrap();
        let all = read(9, Level::Trace, MOST_BYTES);
        assert_eq!((messages(&all), all.more), (vec!["d", "c", "b", "a"], false));
        assert_eq!(messages(&read(9, Level::Warn, MOST_BYTES)), ["c", "b"]);
        let two = read(2, Level::Trace, MOST_BYTES);
        assert_eq!((messages(&two), two.more), (vec!["d", "c"], true));
        let cut = read(9, Level::Trace, newer.len() as u64 - 3);
        assert_eq!((messages(&cut), cut.more), (vec!["d"], true));
        assert!(newest_lines(&folder.path().join("none"), 1, Level::Info, 9).is_err());
    }
}
