//! The report that lies beside a file in `failed/`.

use std::fmt::Write;
use std::path::Path;

use chandler_durable as durable;
use serde::{Deserialize, Serialize};

use super::error::QueueError;
use crate::store::Job;
use crate::visible::{visible, visible_json};

/// A line of a training file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// The line, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a file was not learned from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailureReport {
    /// The job.
    pub job_id: i64,
    /// The name the user gave the file.
    pub file_name: String,
    /// SHA-256 of the file, where it was read that far.
    pub sha256: Option<String>,
    /// How often it was tried.
    pub attempts: u64,
    /// What happened, then what caused it, and so on.
    pub errors: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The lines that cannot be used.
    pub bad_lines: Vec<BadLine>,
}

impl FailureReport {
    /// A report on this job that does not say yet what happened.
    pub fn about(job: &Job) -> Self {
        Self {
            job_id: job.id,
            file_name: job.file_name.clone(),
            sha256: job.sha256.clone(),
            attempts: job.attempts,
            errors: Vec::new(),
            hint: None,
            bad_lines: Vec::new(),
        }
    }

    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{} (job {}) was not learned from after {} attempt{}.\n",
            self.file_name,
            self.job_id,
            self.attempts,
            if self.attempts == 1 { "" } else { "s" }
        );
        for (depth, error) in self.errors.iter().enumerate() {
            let lead = if depth == 0 { "error" } else { "  because" };
            let _ = writeln!(text, "{lead}: {error}");
        }
        for bad in &self.bad_lines {
            let _ = writeln!(text, "line {}: {}", bad.line, bad.reason);
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
        let _ = writeln!(text, "`chandler retry {}` queues it again.", self.job_id);
        text
    }

    /// Writes `NAME.report.json` and `NAME.report.txt` beside the file.
    pub(super) fn write_beside(&self, file: &Path) -> Result<(), QueueError> {
        let json = serde_json::to_string_pretty(self).unwrap_or_else(|_| self.errors.join("\n"));
        durable::write(&beside(file, "report.json"), visible_json(&json).as_bytes())?;
        durable::write(&beside(file, "report.txt"), visible(&self.to_text()).as_bytes())?;
        Ok(())
    }
}

/// Removes the reports beside a file that is tried again.
pub(super) fn remove_beside(file: &Path) -> Result<(), QueueError> {
    for ending in ["report.json", "report.txt"] {
        let path = beside(file, ending);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(QueueError::Remove { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn beside(file: &Path, ending: &str) -> std::path::PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_line_and_reason() {
        let report = FailureReport {
            job_id: 4,
            file_name: "a.jsonl".into(),
            sha256: None,
            attempts: 1,
            errors: vec!["1 line cannot be used".into(), "not JSON".into()],
            hint: Some("correct it".into()),
            bad_lines: vec![BadLine { line: 7, reason: "not JSON".into() }],
        };
        assert_eq!(
            report.to_text(),
            "a.jsonl (job 4) was not learned from after 1 attempt.\n\
             error: 1 line cannot be used\n  because: not JSON\nline 7: not JSON\n\
             hint: correct it\n`chandler retry 4` queues it again.\n"
        );
    }
}
