//! What is sent to whom, and where it is kept until it is delivered.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::message::{Notice, Origin};
use crate::config::Webhook;
use crate::store::Event;

/// What is older than this is told nobody, in milliseconds: a day.
pub(super) const OLDEST_MS: i64 = 24 * 3600 * 1000;

/// A webhook and its name in the outbox.
pub(super) struct Hook {
    pub(super) name: String,
    pub(super) webhook: Webhook,
    /// The receiver wants to hear nothing before.
    pub(super) quiet_until_ms: i64,
}

/// Something to send to one webhook.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) hook: usize,
    pub(super) key: String,
    pub(super) notice: Notice,
    pub(super) created_ms: i64,
    pub(super) failures: u32,
    pub(super) place: Place,
}

/// Where it is kept until it is delivered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In the outbox.
    Parcel(i64),
    /// Here alone, until this time.
    Loose { next_ms: i64 },
}

/// What could not be noted in the database of a parcel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unsaved {
    Gone,
    Until(i64),
}

impl Hook {
    pub(super) fn new(webhook: &Webhook) -> Self {
        let digest = Sha256::digest(webhook.url.reveal());
        Self { name: hex(&digest[..8]), webhook: webhook.clone(), quiet_until_ms: 0 }
    }
}

/// The names of the webhooks that are to be told of an event.
pub(super) fn wanted_by(hooks: &[Hook], event: &Event, now_ms: i64) -> Vec<String> {
    let Some(notice) = Notice::of(event) else { return Vec::new() };
    if age_ms(event, now_ms) > OLDEST_MS {
        return Vec::new();
    }
    let wanting = hooks.iter().filter(|hook| hook.webhook.wants(notice.topic));
    wanting.map(|hook| hook.name.clone()).collect()
}

pub(super) fn age_ms(event: &Event, now_ms: i64) -> i64 {
    let at = event.at.parse::<Timestamp>().map_or(0, Timestamp::as_millisecond);
    now_ms - at
}

/// What a receiver knows repeats by, of a notice that is in no outbox.
pub(super) fn loose_key(notice: &Notice, origin: &Origin, hook: &str) -> String {
    let digest = Sha256::digest(format!("{notice:?} {origin:?} {hook}"));
    hex(&digest[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
