//! An error as the terminal shows it: what happened, what caused it, what to do, and the exit code.

use std::fmt::Write;

use crate::config::ConfigError;
use crate::control::ControlError;
use crate::daemon::{DaemonError, JobError};
use crate::exit::Exit;
use crate::export::ExportError;
use crate::http::HttpError;
use crate::logging::LoggingError;
use crate::queue::QueueError;
use crate::state_dir::StateDirError;
use crate::store::StoreError;
use crate::visible::visible;

/// Why a command ended without doing what was asked.
#[derive(Debug)]
pub struct Failure {
    /// The code that the process ends with.
    pub exit: Exit,
    /// What happened, with its causes.
    pub error: anyhow::Error,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure from any error.
    pub fn new(exit: Exit, error: impl Into<anyhow::Error>, hint: Option<String>) -> Self {
        Self { exit, error: error.into(), hint }
    }

    /// `error: …`, one line for each cause that says something new, and `hint: …`.
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
        };
        let mut text = String::new();
        for (depth, cause) in said_once(self.error.as_ref()).iter().enumerate() {
            let lead = if depth == 0 { paint("1;31", "error") } else { "  because".to_owned() };
            let _ = writeln!(text, "{lead}: {}", visible(cause));
        }
        if let Some(hint) = self.hint.clone().or_else(|| hint_of_system(&self.error)) {
            let _ = writeln!(text, "{}: {}", paint("1;36", "hint"), visible(&hint));
        }
        text
    }

    /// As JSON on one line: `error`, `because` (its causes), `hint` and `exit` (the code).
    pub fn render_json(&self) -> String {
        let mut said = said_once(self.error.as_ref());
        let causes = said.split_off(1);
        let value = serde_json::json!({
            "error": said.pop(),
            "because": causes,
            "hint": self.hint.clone().or_else(|| hint_of_system(&self.error)),
            "exit": self.exit.code(),
        });
        format!("{value}\n")
    }
}

/// What an error says and what its causes say, each said once: transparent errors repeat what stands
/// above them.
pub(crate) fn said_once(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    let causes =
        std::iter::successors(Some(error), |error: &&(dyn std::error::Error + 'static)| {
            (*error).source()
        });
    for cause in causes.map(ToString::to_string) {
        if !said.last().is_some_and(|above| above.contains(&cause)) {
            said.push(cause);
        }
    }
    said
}

/// An error and its causes in one line.
pub(crate) fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    said_once(error).join(": ")
}

/// What to do where the operating system refused something and nobody knows better.
fn hint_of_system(error: &anyhow::Error) -> Option<String> {
    use std::io::ErrorKind;
    let source = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>())?;
    let hint = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some room and try again",
        ErrorKind::PermissionDenied => "check owner and mode, and which user this runs as",
        ErrorKind::NotFound => "check the path",
        _ => "the disk or the system does not answer as it should: look at `dmesg`",
    };
    Some(hint.to_owned())
}

macro_rules! failure_from {
    ($($error:ty => $exit:expr),+ $(,)?) => {
        $(
            impl From<$error> for Failure {
                fn from(error: $error) -> Self {
                    let hint = error.hint();
                    Self::new($exit, error, hint)
                }
            }
        )+
    };
}

failure_from! {
    ConfigError => Exit::Usage,
    StateDirError => Exit::StateDir,
    LoggingError => Exit::Usage,
    StoreError => Exit::Error,
    HttpError => Exit::Error,
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        Self::new(exit, error, hint)
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        let (exit, hint) = match &error {
            QueueError::Refused { .. } => (Exit::BadData, error.hint()),
            QueueError::Durable { source } if source.is_out_of_space() => {
                (Exit::NoSpace, error.hint())
            }
            _ => (Exit::Error, error.hint()),
        };
        Self::new(exit, error, hint)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let exit = match &error {
            ControlError::NotRunning { .. } => Exit::NotRunning,
            _ => Exit::Error,
        };
        let hint = error.hint();
        Self::new(exit, error, hint)
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let (exit, hint) = (error.exit(), error.hint());
        Self::new(exit, error, hint)
    }
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        let exit = match error.fault {
            crate::daemon::Fault::File => Exit::BadData,
            crate::daemon::Fault::Attempt => Exit::Error,
            crate::daemon::Fault::Setup(exit) => exit,
        };
        Self { exit, error: error.error, hint: error.hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_that_repeat_are_told_once() {
        let error = anyhow::anyhow!("no room").context("cannot write x").context("run failed");
        let failure = Failure::new(Exit::Error, error, Some("free some".into()));
        assert_eq!(
            failure.render(false),
            "error: run failed\n  because: cannot write x\n  because: no room\nhint: free some\n"
        );
        let error = anyhow::anyhow!("no room").context("cannot write x: no room");
        let failure = Failure::new(Exit::Error, error, None);
        assert_eq!(failure.render(false), "error: cannot write x: no room\n");
    }

    #[test]
    fn an_error_is_json_with_the_same_words() {
        let error = anyhow::anyhow!("no\nroom").context("cannot write x");
        let failure = Failure::new(Exit::NoSpace, error, Some("free some".into()));
        assert_eq!(
            failure.render_json(),
            "{\"error\":\"cannot write x\",\"because\":[\"no\\nroom\"],\"hint\":\"free some\",\
             \"exit\":6}\n"
        );
    }
}
