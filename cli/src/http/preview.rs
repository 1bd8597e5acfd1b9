//! `GET /api/jobs/{id}/preview`: what of a job's file is trained, as `chandler data preview` shows
//! it. A worker reads the file; this process sees what comes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use chandler_data::IGNORE_INDEX;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::read::{AnId, Answer, Asked};
use super::reply::Refusal;
use super::routes::App;
use crate::config::{Config, DataConfig};
use crate::engine::{EngineError, data_options, model_here};
use crate::queue::BadLine;
use crate::state_dir::StateDir;
use crate::store::{Job, Store, StoreError};
use crate::worker::{PreviewRow, Supervision, Work, WorkerError, send};

/// Rows where the request does not say how many.
const USUAL_ROWS: usize = 20;
/// Rows at most.
const MOST_ROWS: usize = 100;
/// Bytes of a row's text that are shown.
const MOST_TEXT: usize = 16 << 10;
/// How long the worker has; less than an answer has.
const PATIENCE: Duration = Duration::from_secs(12);

/// The first so many rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    rows: Option<usize>,
}

/// The first rows of a job's file.
#[derive(Debug, Serialize)]
pub(super) struct Preview {
    job_id: i64,
    file_name: String,
    /// Tokens after which a row is cut.
    max_length: usize,
    rows: Vec<Row>,
    /// Why there are no more rows, where the file does not end there.
    problem: Option<Problem>,
}

#[derive(Debug, Serialize)]
struct Row {
    line: u64,
    tokens: usize,
    trained: usize,
    /// Whether the end of the row is beyond `max_length`.
    cut: bool,
    /// Whether there is more text than is shown.
    shortened: bool,
    /// Stretches of text, and whether they are trained.
    pieces: Vec<(String, bool)>,
}

#[derive(Debug, Serialize)]
struct Problem {
    error: String,
    hint: Option<String>,
    bad_lines: Vec<BadLine>,
}

pub(super) async fn preview(
    State(app): State<Arc<App>>,
    id: AnId,
    wanted: Asked<Wanted>,
) -> Answer<Preview> {
    let (Path(id), Query(wanted)) = (id?, wanted?);
    let rows = wanted.rows.unwrap_or(USUAL_ROWS).clamp(1, MOST_ROWS);
    let Ok(place) = Arc::clone(&app.previews).try_acquire_owned() else {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "another preview is being made",
            "try again in a moment: they are made one at a time",
        ));
    };
    let (job, data) = app.read(move |store| Ok((store.job(id)?, data_of(store, id)?))).await?;
    let config =
        Config { data: data.unwrap_or_else(|| app.config.data.clone()), ..app.config.clone() };
    let asked = StillAsked::default();
    let state = app.state.clone();
    let errand = Errand { config, state, job, rows, still: Arc::clone(&asked.0), _place: place };
    App::apart(move || errand.run()).await?.map(Json)
}

/// The options that the job was last read with.
fn data_of(store: &Store, job: i64) -> Result<Option<DataConfig>, StoreError> {
    let Some(run) = store.last_run_of(job)? else { return Ok(None) };
    let data =
        store.run_config(run.id)?.and_then(|mut config| Some(config.get_mut("data")?.take()));
    // An older version may have had other keys.
    Ok(data.and_then(|data| serde_json::from_value(data).ok()))
}

/// Says, once it is dropped, that nobody waits for the answer any more.
struct StillAsked(Arc<AtomicBool>);

impl Default for StillAsked {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for StillAsked {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What the worker is sent for.
struct Errand {
    config: Config,
    state: StateDir,
    job: Job,
    rows: usize,
    still: Arc<AtomicBool>,
    _place: OwnedSemaphorePermit,
}

impl Errand {
    fn run(self) -> Result<Preview, Refusal> {
        let begun = Instant::now();
        let folder = model_here(&self.config, &self.state)?;
        let supervision = Supervision {
            limits: &self.config.limits,
            stop: &|| begun.elapsed() > PATIENCE || !self.still.load(Ordering::Relaxed),
            proven: &|| {},
            reading: &|_| {},
        };
        let work = Work::Preview {
            file: self.job.path.clone(),
            options: data_options(&self.config, None),
            rows: self.rows,
            pieces: true,
            most_text: Some(MOST_TEXT),
        };
        let mut rows = vec![];
        let mut take = |row: PreviewRow| rows.push(Row::from(row));
        let problem = match send(folder, None, work, &supervision, &mut take) {
            Ok(_) => None,
            Err(WorkerError::Stopped) => Some(Problem::of_time()),
            Err(error) => Some(Problem::from(error)),
        };
        let max_length = self.config.data.max_length;
        let Job { id: job_id, file_name, .. } = self.job;
        Ok(Preview { job_id, file_name, max_length, rows, problem })
    }
}

impl From<PreviewRow> for Row {
    fn from(row: PreviewRow) -> Self {
        let trained = row.labels.iter().filter(|label| **label != IGNORE_INDEX).count();
        let PreviewRow { line, cut, input_ids, pieces, shortened, .. } = row;
        Self { line, tokens: input_ids.len(), trained, cut, shortened, pieces }
    }
}

impl Problem {
    fn of_time() -> Self {
        Self {
            error: format!("reading took longer than {} s", PATIENCE.as_secs()),
            hint: Some("ask for fewer rows, or use `chandler data preview FILE`".to_owned()),
            bad_lines: vec![],
        }
    }
}

impl From<WorkerError> for Problem {
    fn from(error: WorkerError) -> Self {
        let (words, hint) = (error.to_string(), error.hint());
        let bad_lines = match error {
            WorkerError::Refused { refusal, .. } => refusal.bad_lines,
            _ => vec![],
        };
        Self { error: words, hint, bad_lines }
    }
}

impl From<EngineError> for Refusal {
    fn from(error: EngineError) -> Self {
        let hint = error.hint();
        Self { status: StatusCode::CONFLICT, error: error.to_string(), hint }
    }
}
