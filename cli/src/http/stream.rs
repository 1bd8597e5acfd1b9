//! `GET /api/stream`: what happens, as it happens, as server-sent events.
//!
//! A viewer has a position and is read to from the database when it has taken what came before:
//! nothing is kept for it but one batch, and nobody waits for it. One that does not read is cut off
//! with its connection; when it comes back it says where it was.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::logs::log_files;
use super::position::{Message, Position};
use super::read::counts;
use super::reply::Refusal;
use super::routes::{App, log_unread};
use crate::control::{LiveStatus, Request, Response as Answered};
use crate::store::{JobState, Store, StoreError};

/// How often it is looked whether the database has changed, while somebody looks on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often what is not in the database is looked at.
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// How often a viewer hears something, so that one that is gone is noticed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Jobs of the queue that are told of.
const NEXT_JOBS: usize = 20;

/// Tells the viewers when the database has changed.
pub(super) async fn watch_database(app: Arc<App>, changes: watch::Sender<i64>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if app.viewers.available_permits() == app.limits.viewers {
            continue;
        }
        if let Ok(version) = app.read(Store::data_version).await {
            changes.send_if_modified(|known| std::mem::replace(known, version) != version);
        }
    }
}

pub(super) async fn stream(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Ok(place) = Arc::clone(&app.viewers).try_acquire_owned() else {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{} others are looking on already", app.limits.viewers),
            "close a page, or ask /api/status now and again",
        ));
    };
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let newest = app.read(Position::newest).await?;
    let position = seen.filter(|seen: &Position| !seen.is_beyond(&newest)).unwrap_or(newest);
    let viewer = Viewer {
        changed: app.changed.clone(),
        app,
        position,
        is_new: true,
        told: Told::default(),
        status_read: None,
        _place: place,
    };
    let chunks = unfold(viewer, |mut viewer: Viewer| async move {
        let chunk = viewer.next_chunk().await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), viewer))
    });
    Ok(([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(chunks)).into_response())
}

struct Viewer {
    app: Arc<App>,
    changed: watch::Receiver<i64>,
    position: Position,
    is_new: bool,
    told: Told,
    status_read: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

/// What was last said of that which has no position.
#[derive(Debug, Clone, Default)]
struct Told {
    queue: Option<Value>,
    progress: Option<Value>,
    memory: Option<Value>,
    log: Option<Value>,
}

impl Viewer {
    /// What there is to say next, once there is something; nothing where the daemon is ending.
    async fn next_chunk(&mut self) -> Option<String> {
        if std::mem::take(&mut self.is_new) {
            let hello = Message { id: Some(self.position), kind: "hello", data: json!({}) };
            let mut text = "retry: 2000\n".to_owned();
            hello.write_into(&mut text);
            return Some(text);
        }
        let begun = Instant::now();
        loop {
            // Marked first: a change while it is read is seen in the next turn.
            self.changed.borrow_and_update();
            let messages = self.look().await?;
            if !messages.is_empty() {
                let mut text = String::new();
                for message in &messages {
                    message.write_into(&mut text);
                }
                return Some(text);
            }
            if begun.elapsed() >= SIGN_OF_LIFE {
                return Some(": nothing new\n\n".to_owned());
            }
            let until_status = self.until_status();
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep(until_status) => {}
            }
        }
    }

    fn until_status(&self) -> Duration {
        let waited = self.status_read.map_or(Duration::ZERO, |read| read.elapsed());
        STATUS_EVERY.saturating_sub(waited)
    }

    /// Reads on from the position, and now and again what is not in the database. Whatever goes
    /// wrong ends the stream; the viewer comes back.
    async fn look(&mut self) -> Option<Vec<Message>> {
        let wants_status = self.status_read.is_none_or(|read| read.elapsed() >= STATUS_EVERY);
        let (app, mut position, mut told) =
            (Arc::clone(&self.app), self.position, self.told.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let live = match wants_status.then(|| (app.handler)(Request::Status)) {
                Some(Answered::Status(live)) => Some(live),
                _ => None,
            };
            let log_bytes = wants_status.then(|| newest_log_bytes(&app)).flatten();
            let store = app.reader.lock().unwrap_or_else(PoisonError::into_inner);
            let looked = store.at_one_moment(|store| {
                let mut messages = position.advance(store)?;
                if let Some(live) = live {
                    told.tell(&live, log_bytes, store, &mut messages)?;
                }
                Ok((messages, position, told))
            });
            looked.inspect_err(log_unread)
        });
        let (messages, position, told) = looked.await.ok()?.ok()?;
        (self.position, self.told) = (position, told);
        if wants_status {
            self.status_read = Some(Instant::now());
        }
        Some(messages)
    }
}

/// The size of the newest log file, which says whether there are more lines.
fn newest_log_bytes(app: &App) -> Option<u64> {
    let newest = log_files(&app.state.logs()).ok()?.into_iter().next()?;
    Some(newest.metadata().ok()?.len())
}

impl Told {
    /// Adds what has changed since it was last told.
    fn tell(
        &mut self,
        live: &LiveStatus,
        log_bytes: Option<u64>,
        store: &Store,
        messages: &mut Vec<Message>,
    ) -> Result<(), StoreError> {
        let mut next = store.jobs_in(JobState::Queued)?;
        next.truncate(NEXT_JOBS);
        let mut current = json!(live.current);
        let progress = current.get_mut("progress").map_or(Value::Null, Value::take);
        let queue = json!({
            "paused": live.paused,
            "stopping": live.stopping,
            "current": current,
            "counts": counts(store)?,
            "next": next,
        });
        let news = [
            ("queue", &mut self.queue, queue),
            ("progress", &mut self.progress, progress),
            ("memory", &mut self.memory, json!(live.memory)),
            ("log", &mut self.log, json!({ "bytes": log_bytes })),
        ];
        for (kind, known, data) in news {
            if known.as_ref() != Some(&data) {
                messages.push(Message { id: None, kind, data: data.clone() });
                *known = Some(data);
            }
        }
        Ok(())
    }
}
