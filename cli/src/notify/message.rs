//! What is said, and how the different receivers want it written.

use serde_json::{Value, json};

use crate::config::{Format, Topic};
use crate::state_dir::StateDir;
use crate::store::Event;
use crate::visible::visible_line;

/// Characters of a message where the receiver has a limit; Discord's is 2000.
const MOST_CHARS: usize = 1800;

/// Who speaks.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    host: String,
    state_dir: String,
}

impl Origin {
    /// The daemon of this state directory, on this machine.
    pub(super) fn of(state: &StateDir) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { host, state_dir: state.root().display().to_string() }
    }
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Notice {
    pub(super) topic: Topic,
    pub(super) at: String,
    pub(super) job: Option<i64>,
    pub(super) run: Option<i64>,
    pub(super) message: String,
    pub(super) details: Option<Value>,
}

impl Notice {
    /// A notice that no event stands behind.
    pub(super) fn now(topic: Topic, message: impl Into<String>) -> Self {
        let at = jiff::Timestamp::now().to_string();
        Self { topic, at, job: None, run: None, message: message.into(), details: None }
    }

    /// What there is to tell of an event, where it is worth telling.
    pub(super) fn of(event: &Event) -> Option<Self> {
        Some(Self {
            topic: topic_of(&event.kind)?,
            at: event.at.clone(),
            job: event.job_id,
            run: event.run_id,
            message: event.message.clone(),
            details: event.details.clone(),
        })
    }

    /// On one line, for people.
    pub(super) fn line(&self) -> String {
        let job = self.job.map_or_else(String::new, |job| format!("job {job}: "));
        let words: Vec<&str> = self.message.lines().map(str::trim).collect();
        let line = visible_line(&format!("{job}{}", words.join(" ")));
        line.chars().take(MOST_CHARS).collect()
    }

    /// A few words on what it is.
    pub(super) fn title(&self) -> &'static str {
        match self.topic {
            Topic::JobDone => "chandler: job done",
            Topic::JobFailed => "chandler: job failed",
            Topic::Alert => "chandler: alert",
            Topic::Memory => "chandler: memory",
            Topic::Trouble => "chandler: trouble",
            Topic::DaemonStarted => "chandler: started",
            Topic::DaemonStopped => "chandler: stopped",
            Topic::DaemonRestarted => "chandler: restarted",
            Topic::Waiting => "chandler: waiting",
            Topic::Test => "chandler: test",
        }
    }
}

/// What kind of event is told of as what.
fn topic_of(kind: &str) -> Option<Topic> {
    match kind {
        "done" => Some(Topic::JobDone),
        "failed" | "attempt_failed" => Some(Topic::JobFailed),
        "alert" => Some(Topic::Alert),
        "memory" => Some(Topic::Memory),
        "trouble" | "when_idle_failed" => Some(Topic::Trouble),
        "daemon_started" => Some(Topic::DaemonStarted),
        "daemon_stopped" => Some(Topic::DaemonStopped),
        "restarted" => Some(Topic::DaemonRestarted),
        "waiting" => Some(Topic::Waiting),
        _ => None,
    }
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) text: String,
    pub(super) content_type: &'static str,
    /// Besides those that every format has.
    pub(super) headers: Vec<(&'static str, &'static str)>,
}

/// Writes a notice as a receiver wants it.
pub(super) fn body(notice: &Notice, key: &str, origin: &Origin, format: Format) -> Body {
    let said = format!("{} on {}: {}", notice.title(), visible_line(&origin.host), notice.line());
    let as_json = |value: Value| Body {
        text: value.to_string(),
        content_type: "application/json",
        headers: vec![],
    };
    match format {
        Format::Json => as_json(json!({
            "id": key,
            "event": notice.topic,
            "at": notice.at,
            "host": origin.host,
            "state_dir": origin.state_dir,
            "job": notice.job,
            "run": notice.run,
            "message": notice.message,
            "details": notice.details,
        })),
        // Three characters mean something there: "Escaping text" in Slack's documentation.
        Format::Slack => as_json(json!({
            "text": said.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"),
        })),
        // Whatever a file is called, it calls nobody.
        Format::Discord => as_json(json!({
            "content": said,
            "allowed_mentions": { "parse": [] },
        })),
        Format::Ntfy => Body {
            text: said,
            content_type: "text/plain; charset=utf-8",
            headers: vec![("Title", notice.title()), ("Priority", priority(notice.topic))],
        },
    }
}

/// In ntfy's words.
fn priority(topic: Topic) -> &'static str {
    match topic {
        Topic::JobFailed | Topic::Alert | Topic::Waiting => "high",
        _ => "default",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice {
            topic: Topic::JobFailed,
            at: "2026-01-02T03:04:05Z".to_owned(),
            job: Some(3),
            run: Some(4),
            message: "a <b> & @everyone\u{1b}[2J".to_owned(),
            details: Some(json!({ "step": 7 })),
        }
    }

    fn written(format: Format) -> Body {
        let origin = Origin { host: "box".to_owned(), state_dir: "/srv/x".to_owned() };
        body(&notice(), "0a1b", &origin, format)
    }

    #[test]
    fn json_has_all_there_is() {
        let value: Value = serde_json::from_str(&written(Format::Json).text).unwrap();
        let expected = json!({
            "id": "0a1b", "event": "job_failed", "at": "2026-01-02T03:04:05Z", "host": "box",
            "state_dir": "/srv/x", "job": 3, "run": 4, "message": "a <b> & @everyone\u{1b}[2J",
            "details": { "step": 7 },
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn others_get_a_line_that_does_nothing() {
        let text = |format| written(format).text;
        let slack: Value = serde_json::from_str(&text(Format::Slack)).unwrap();
        let line = "chandler: job failed on box: job 3: a &lt;b&gt; &amp; @everyone\\u{1b}[2J";
        assert_eq!(slack, json!({ "text": line }));
        let discord: Value = serde_json::from_str(&text(Format::Discord)).unwrap();
        assert_eq!(discord["allowed_mentions"]["parse"], json!([]));
        assert!(discord["content"].as_str().unwrap().contains("a <b> &"));
        let ntfy = written(Format::Ntfy);
        assert!(ntfy.text.ends_with("a <b> & @everyone\\u{1b}[2J"), "{}", ntfy.text);
        assert_eq!(ntfy.headers, [("Title", "chandler: job failed"), ("Priority", "high")]);
        let table = Notice { message: "no room\n  weights 1 GiB\n".to_owned(), ..notice() };
        assert_eq!(table.line(), "job 3: no room weights 1 GiB");
        let long = Notice { message: "x".repeat(9000), ..notice() };
        assert_eq!(long.line().chars().count(), MOST_CHARS);
    }

    #[test]
    fn only_what_is_worth_telling_is_told() {
        let told = |kind: &str| topic_of(kind).is_some();
        assert!(told("done") && told("alert") && told("memory") && told("restarted"));
        assert!(!told("queued") && !told("undelivered"), "or a failure would tell of itself");
    }
}
