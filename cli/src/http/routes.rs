//! Which path is answered by what.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};

use super::guard::{self, Guard};
use super::limits::Limits;
use super::plan::Drawn;
use super::reply::Refusal;
use super::v1::{self, V1};
use super::{assets, layers, logs, plan, preview, prometheus, read, steer, stream};
use crate::config::Config;
use crate::control::{Handler, LiveStatus, Request, Response};
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};

/// No request has a body nearly as long.
const MOST_BODY_BYTES: usize = 16 * 1024;

/// What every answer is made from.
pub(super) struct App {
    pub(super) state: StateDir,
    /// What the daemon was started with.
    pub(super) config: Config,
    /// Who answers for the daemon.
    pub(super) handler: Arc<Handler>,
    pub(super) guard: Guard,
    /// The database, for threads that may wait.
    pub(super) reader: Mutex<Store>,
    pub(super) limits: Limits,
    /// Places for those who follow the stream.
    pub(super) viewers: Arc<Semaphore>,
    /// The place of the one preview that is made at a time.
    pub(super) previews: Arc<Semaphore>,
    /// The newest table that was asked for.
    pub(super) drawn: Mutex<Option<Drawn>>,
    /// Changes when the database does.
    pub(super) changed: watch::Receiver<i64>,
}

impl App {
    /// Reads the database on a thread that may wait.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        reading: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let app = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            // Reading leaves nothing half done behind.
            let store = app.reader.lock().unwrap_or_else(PoisonError::into_inner);
            store.at_one_moment(reading).inspect_err(log_unread)
        });
        Ok(read.await.map_err(|panic| broken(&panic))??)
    }

    /// Does what takes its time on a thread that may.
    pub(super) async fn apart<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        tokio::task::spawn_blocking(work).await.map_err(|panic| broken(&panic))
    }

    /// Asks the daemon on a thread that may wait.
    pub(super) async fn ask(self: &Arc<Self>, request: Request) -> Result<Response, Refusal> {
        let handler = Arc::clone(&self.handler);
        let asked = tokio::task::spawn_blocking(move || handler(request)).await;
        asked.map_err(|panic| broken(&panic))
    }

    /// What the daemon says of itself.
    pub(super) async fn live(self: &Arc<Self>) -> Result<LiveStatus, Refusal> {
        match self.ask(Request::Status).await? {
            Response::Status(status) => Ok(*status),
            _ => Err(broken(&"it answered something else")),
        }
    }
}

/// The causes of what the page is told in a line.
pub(super) fn log_unread(error: &StoreError) {
    if !matches!(error, StoreError::NoSuchJob { .. }) {
        tracing::warn!("the page cannot read: {}", crate::failure::in_one_line(error));
    }
}

fn broken(why: &dyn std::fmt::Display) -> Refusal {
    tracing::error!("the page gets no answer: {why}");
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the daemon could not answer",
        "the newest file in logs/ says why",
    )
}

/// Everything there is, behind the guard; answers of the model where somebody gives them.
pub(super) fn router(app: Arc<App>, v1: Option<V1>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(prometheus::metrics))
        .route("/api/status", get(read::status))
        .route("/api/jobs", get(read::jobs))
        .route("/api/jobs/{id}", get(read::job))
        .route("/api/jobs/{id}/preview", get(preview::preview))
        .route("/api/runs", get(read::runs))
        .route("/api/runs/{id}", get(read::run))
        .route("/api/runs/{id}/metrics", get(read::metrics))
        .route("/api/runs/{id}/layers", get(layers::layers))
        .route("/api/runs/{id}/evals", get(read::evals))
        .route("/api/runs/{id}/samples", get(read::samples))
        .route("/api/runs/{id}/answers", get(read::answers))
        .route("/api/events", get(read::events))
        .route("/api/plan", get(read::plan))
        .route("/api/plan/table", get(plan::table))
        .route("/api/plan.svg", get(plan::picture))
        .route("/api/logs", get(logs::logs))
        .route("/api/stream", get(stream::stream))
        .route("/api/pause", post(steer::pause))
        .route("/api/resume", post(steer::resume))
        .route("/api/skip", post(steer::skip))
        .route("/api/stop", post(steer::stop))
        .route("/api/retry", post(steer::retry))
        .route("/api/priority", post(steer::priority))
        .route("/api/eval-now", post(steer::eval_now))
        .merge(v1.map_or_else(Router::new, v1::router))
        .fallback(get(assets::asset).fallback(not_so))
        .method_not_allowed_fallback(not_so)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .layer(from_fn_with_state(Arc::clone(&app), guard::stand))
        .with_state(app)
}

async fn not_so(uri: Uri) -> Refusal {
    let error = format!("{} is not asked for in this way", uri.path());
    Refusal { status: StatusCode::METHOD_NOT_ALLOWED, ..Refusal::not_found(error) }
}
