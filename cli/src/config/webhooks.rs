//! Webhooks as they are configured: `[[notify.webhooks]]`.
//!
//! The address of many a webhook is all that it takes to write there, so it is kept from logs and
//! from what is printed and recorded as its key is.

use std::fmt;

use figment::value::Value;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use super::keys::{ConfigValue, Kind, choice};

/// What stands for a text that is not shown.
const HIDDEN: &str = "…";

choice! {
    /// What a webhook may be told of.
    Topic {
        /// A file was learned from.
        JobDone = "job_done",
        /// A file was given up, or an attempt at it failed.
        JobFailed = "job_failed",
        /// Something is out of the ordinary.
        Alert = "alert",
        /// Memory ran short, and something was done about it.
        Memory = "memory",
        /// Something failed that the daemon can do without.
        Trouble = "trouble",
        /// The daemon began to work.
        DaemonStarted = "daemon_started",
        /// The daemon ended.
        DaemonStopped = "daemon_stopped",
        /// The daemon was started again after a crash.
        DaemonRestarted = "daemon_restarted",
        /// The daemon waits for the disk.
        Waiting = "waiting",
        /// `chandler notify test` asked for it; always sent.
        Test = "test",
    }
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 10] = [
        Self::JobDone,
        Self::JobFailed,
        Self::Alert,
        Self::Memory,
        Self::Trouble,
        Self::DaemonStarted,
        Self::DaemonStopped,
        Self::DaemonRestarted,
        Self::Waiting,
        Self::Test,
    ];
}

choice! {
    /// What a webhook is sent.
    Format {
        /// An object with all there is to know.
        Json = "json",
        /// `{"text"}`, as Slack and Mattermost read it.
        Slack = "slack",
        /// `{"content"}`, as Discord reads it.
        Discord = "discord",
        /// A line of text, as ntfy reads it.
        Ntfy = "ntfy",
    }
}

/// A text that is neither shown nor logged nor recorded.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// A secret of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// An address that is told of what happens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to send it; of http or https.
    pub url: Secret,
    /// What is sent; everything, where it is empty.
    #[serde(default)]
    pub events: Vec<Topic>,
    /// What the body is signed with.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// How it is written.
    #[serde(default = "Webhook::usual_format")]
    pub format: Format,
}

impl Webhook {
    fn usual_format() -> Format {
        Format::Json
    }

    /// Whether it is to be told.
    pub fn wants(&self, topic: Topic) -> bool {
        topic == Topic::Test || self.events.is_empty() || self.events.contains(&topic)
    }

    /// Where it is, without what opens it: `https://hooks.example/…`.
    pub fn place(&self) -> String {
        let Ok(url) = Url::parse(self.url.reveal()) else { return HIDDEN.to_owned() };
        let host = url.host_str().unwrap_or(HIDDEN);
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{host}{port}/{HIDDEN}", url.scheme())
    }
}

impl Serialize for Webhook {
    /// Without what opens it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut table = serializer.serialize_struct("Webhook", 4)?;
        table.serialize_field("url", &self.place())?;
        table.serialize_field("events", &self.events)?;
        table.serialize_field("secret", &self.secret.as_ref().map(|_| HIDDEN))?;
        table.serialize_field("format", &self.format)?;
        table.end()
    }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Webhooks(pub Vec<Webhook>);

impl ConfigValue for Webhooks {
    const KIND: Kind = Kind::Webhooks;
}

/// What is wrong with the value of `notify.webhooks`, as the rest of a sentence that begins with
/// the key and "is"; it repeats no address.
pub(super) fn complaint(value: &Value) -> Option<String> {
    let Some(entries) = value.as_array() else {
        return Some("no list (write [[notify.webhooks]] and its keys below it)".to_owned());
    };
    let url = |entry: &Value| entry.as_dict()?.get("url")?.as_str().map(str::to_owned);
    entries.iter().enumerate().find_map(|(index, entry)| {
        let is_double = || entries[..index].iter().any(|earlier| url(earlier) == url(entry));
        let double = || is_double().then(|| "has the `url` of another".to_owned());
        let what = complaint_of_one(entry).or_else(double)?;
        Some(format!("a list whose entry {} {what}", index + 1))
    })
}

fn complaint_of_one(entry: &Value) -> Option<String> {
    const KEYS: [&str; 4] = ["url", "events", "secret", "format"];
    let Some(table) = entry.as_dict() else { return Some("is no table".to_owned()) };
    if let Some(unknown) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Some(format!("has the unknown key `{unknown}` (there are {})", KEYS.join(", ")));
    }
    let is_address = |text: &str| {
        Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    };
    if !table.get("url").and_then(Value::as_str).is_some_and(is_address) {
        return Some("has no `url` that begins with https:// or http://".to_owned());
    }
    let topics = table.get("events").map(|events| events.as_array().unwrap_or(&[]));
    let known = |event: &Value| {
        event.as_str().is_some_and(|word| Topic::ALL.iter().any(|topic| topic.as_str() == word))
    };
    if topics.is_some_and(|topics| topics.is_empty() || !topics.iter().all(known)) {
        let words = Topic::ALL.map(Topic::as_str).join(", ");
        return Some(format!("has `events` that is no list of some of {words}"));
    }
    let is_secret = |secret: &Value| secret.as_str().is_some_and(|text| !text.is_empty());
    if !table.get("secret").is_none_or(is_secret) {
        return Some("has a `secret` that is no text, or empty".to_owned());
    }
    let is_format = |format: &Value| {
        format.as_str().is_some_and(|word| ["json", "slack", "discord", "ntfy"].contains(&word))
    };
    (!table.get("format").is_none_or(is_format))
        .then(|| "has a `format` that is none of json, slack, discord, ntfy".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigSources, ResolvedConfig};
    use super::*;

    fn load(text: &str) -> Result<Webhooks, String> {
        let sources = ConfigSources {
            set: vec![format!("notify.webhooks={text}")],
            ..ConfigSources::default()
        };
        match ResolvedConfig::load(&sources) {
            Ok(resolved) => Ok(resolved.config.notify.webhooks),
            Err(error) => Err(error.to_string()),
        }
    }

    const SLACK: &str = r#"{url = "https://u:pw@hooks.example:8443/T0/B1?k=v", events = ["alert"],
        secret = "s3cret", format = "slack"}"#;

    #[test]
    fn a_webhook_is_read_and_shown_without_what_opens_it() {
        let text = format!("[{}, {{url = \"http://127.0.0.1:9\"}}]", SLACK.replace('\n', ""));
        let hooks = load(&text).unwrap().0;
        assert_eq!(hooks[0].url.reveal(), "https://u:pw@hooks.example:8443/T0/B1?k=v");
        assert_eq!((hooks[0].format, hooks[1].format), (Format::Slack, Format::Json));
        assert!(hooks[0].wants(Topic::Alert) && hooks[0].wants(Topic::Test));
        assert!(!hooks[0].wants(Topic::JobDone) && hooks[1].wants(Topic::JobDone));
        for shown in [serde_json::json!(hooks).to_string(), format!("{hooks:?}")] {
            for hidden in ["pw", "T0", "k=v", "s3cret"] {
                assert!(!shown.contains(hidden), "{hidden} in {shown}");
            }
        }
        assert_eq!(hooks[0].place(), "https://hooks.example:8443/…");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_address() {
        for (text, expected) in [
            ("https://hooks.example/T0", "no list"),
            ("[\"https://hooks.example/T0\"]", "entry 1 is no table"),
            ("[{url = \"ftp://hooks.example/T0\"}]", "no `url` that begins"),
            ("[{url = \"hooks.example/T0\"}]", "no `url` that begins"),
            ("[{address = \"https://hooks.example/T0\"}]", "unknown key `address`"),
            (
                "[{url = \"https://hooks.example/T0\", events = [\"job_don\"]}]",
                "job_done, job_failed",
            ),
            ("[{url = \"https://hooks.example/T0\", events = \"alert\"}]", "`events`"),
            ("[{url = \"https://hooks.example/T0\", secret = \"\"}]", "`secret`"),
            ("[{url = \"https://hooks.example/T0\", format = \"xml\"}]", "`format`"),
            (
                "[{url = \"https://a.b/T0\"}, {url = \"https://a.b/T0\"}]",
                "entry 2 has the `url` of",
            ),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("T0"), "{error}");
        }
    }
}
