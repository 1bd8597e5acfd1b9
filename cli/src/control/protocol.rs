//! What is said over the socket.

use serde::{Deserialize, Serialize};

use crate::daemon::{CurrentJob, LiveMemory};
use crate::priority::Priority;

/// What a command asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// What are you doing?
    Status,
    /// Take no more steps until told to resume.
    Pause,
    /// Go on.
    Resume,
    /// Pass over a job; without a number, the one that is being worked on.
    Skip {
        /// The job.
        job: Option<i64>,
    },
    /// Finish the step, leave a checkpoint, end.
    Stop,
    /// Queue a settled job again.
    Retry {
        /// The job.
        job: i64,
    },
    /// Move a queued job before or behind others.
    Priority {
        /// The job.
        job: i64,
        /// Its new priority.
        priority: Priority,
    },
    /// Evaluate after the step that is going on.
    EvalNow,
    /// Something entered the queue: look now.
    Look,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<LiveStatus>),
    /// It was done, or will be.
    Done {
        /// What, in a sentence.
        message: String,
    },
    /// It was not done.
    Refused {
        /// Why not.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

/// What a daemon knows about itself that is not in the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it began.
    pub started_at: String,
    /// Whether it is paused.
    pub paused: bool,
    /// Whether it is about to end.
    pub stopping: bool,
    /// What it works on.
    pub current: Option<CurrentJob>,
    /// What it waits for, where it cannot go on: room on the disk, a disk that answers.
    #[serde(default)]
    pub waiting: Option<String>,
    /// Its memory.
    pub memory: LiveMemory,
    /// Where its HTTP server listens, if it has one.
    #[serde(default)]
    pub http: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_as_documented() {
        for (request, line) in [
            (Request::Status, r#"{"command":"status"}"#),
            (Request::Skip { job: None }, r#"{"command":"skip","job":null}"#),
            (Request::Retry { job: 3 }, r#"{"command":"retry","job":3}"#),
            (
                Request::Priority { job: 3, priority: Priority::High },
                r#"{"command":"priority","job":3,"priority":"high"}"#,
            ),
            (Request::EvalNow, r#"{"command":"eval_now"}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        let done = Response::Done { message: "m".into() };
        assert_eq!(serde_json::to_string(&done).unwrap(), r#"{"answer":"done","message":"m"}"#);
    }
}
