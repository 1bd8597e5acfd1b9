//! The file of `chandler train --metrics`: one JSON object for each step, in order, each step once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chandler_trainer::BoxError;
use serde_json::Value;

use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::place::Place;
use crate::store::StepRow;

/// An open metrics file.
pub(super) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Refuses a file that is there and is something else: it would be emptied.
    pub(super) fn check(path: &Path) -> Result<(), Failure> {
        kept(path, 0).map(drop)
    }

    /// Opens the file, cut back to the lines up to `step`.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self, Failure> {
        let file = match Place::of(path) {
            Place::Stream(path) => Place::open_stream(&path),
            Place::File(path) => {
                let kept = kept(&path, step)?;
                chandler_durable::write(&path, kept.as_bytes()).map_err(EngineError::from)?;
                OpenOptions::new().append(true).open(&path)
            }
        };
        let path = path.to_owned();
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(EngineError::Write { path, source }.into()),
        }
    }

    /// Adds a step.
    pub(super) fn push(&mut self, row: &StepRow) -> Result<(), BoxError> {
        let line = format!("{}\n", serde_json::to_string(row)?);
        let written = self.file.write_all(line.as_bytes());
        Ok(written.map_err(|source| EngineError::Write { path: self.path.clone(), source })?)
    }
}

/// The lines of a metrics file up to `step`; none where there is no file, or one that is no file of
/// lines, such as a pipe. What a killed run left of its last line counts as nothing.
fn kept(path: &Path, step: u64) -> Result<String, Failure> {
    if matches!(Place::of(path), Place::Stream(_)) {
        return Ok(String::new());
    }
    let foreign = |what: String| {
        let error = anyhow::anyhow!("{} is no metrics file: {what}", path.display());
        let hint = "name a new file with --metrics: this one would be overwritten".to_owned();
        Failure::new(Exit::Usage, error, Some(hint))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(foreign("it is no text".to_owned()));
        }
        Err(source) => {
            return Err(EngineError::Read { path: path.to_owned(), source }.into());
        }
    };
    let mut kept = String::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match step_of(line) {
            Some(at) if at <= step => {
                kept.push_str(line.trim_end());
                kept.push('\n');
            }
            Some(_) => {}
            None if number > 0 && !line.ends_with('\n') => {}
            None => return Err(foreign(format!("line {} has no step", number + 1))),
        }
    }
    Ok(kept)
}

fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<Value>(line).ok()?["step"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_file_is_cut_back_and_any_other_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsFile::check(&path).unwrap();
        let lines = "{\"step\":1}\n{\"step\":2}\n{\"st";
        chandler_durable::write(&path, lines.as_bytes()).unwrap();
        MetricsFile::check(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), lines, "to look changes nothing");
        MetricsFile::open(&path, 1).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n");
        for other in ["# Notes\n", "my notes", "{\"step\":1}\n{\"prompt\":\"a\"}\n"] {
            chandler_durable::write(&path, other.as_bytes()).unwrap();
            assert!(MetricsFile::check(&path).is_err(), "{other:?}");
            assert!(MetricsFile::open(&path, 9).is_err(), "{other:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
        MetricsFile::open(Path::new("/dev/null"), 0).unwrap();
    }
}
