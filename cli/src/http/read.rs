//! What can be read: status, jobs, runs, their curves, evaluations and samples, events, the plan.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::curve::Course;
use super::reply::Refusal;
use super::routes::App;
use crate::control::LiveStatus;
use crate::store::{
    Binding, EvalRow, EvalSample, Event, Job, JobState, Run, RunSummary, StoreError,
};

/// Rows of a list where the request does not say how many.
const USUAL_LIMIT: usize = 100;
/// Rows of a list at most.
const MOST_LIMIT: usize = 1000;
/// Points of a curve where the request does not say how many.
const USUAL_POINTS: usize = 1000;
/// Points of a curve at most.
const MOST_POINTS: usize = 4000;

pub(super) type Answer<T> = Result<Json<T>, Refusal>;
pub(super) type AnId = Result<Path<i64>, PathRejection>;
pub(super) type Asked<T> = Result<Query<T>, QueryRejection>;

/// `GET /api/status`.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    state_dir: String,
    daemon: LiveStatus,
    base_model: Option<Binding>,
    /// Jobs by state.
    counts: Counts,
}

/// How many jobs are in each state.
pub(super) type Counts = std::collections::BTreeMap<String, u64>;

pub(super) async fn status(State(app): State<Arc<App>>) -> Answer<Status> {
    let daemon = app.live().await?;
    let (base_model, counts) = app.read(|store| Ok((store.binding()?, counts(store)?))).await?;
    let state_dir = app.state.root().display().to_string();
    Ok(Json(Status { state_dir, daemon, base_model, counts }))
}

pub(super) fn counts(store: &crate::store::Store) -> Result<Counts, StoreError> {
    let counts = store.count_jobs()?.into_iter();
    Ok(counts.map(|(state, count)| (state.to_string(), count)).collect())
}

/// A part of a list: the last `limit` before the one with the number `before`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    limit: Option<usize>,
    before: Option<i64>,
}

impl Part {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(USUAL_LIMIT).min(MOST_LIMIT)
    }
}

/// `GET /api/jobs`: what runs, what waits in its order, and what was settled, the newest first.
#[derive(Debug, Serialize)]
pub(super) struct Jobs {
    running: Vec<Job>,
    queued: Vec<Job>,
    settled: Vec<Job>,
}

pub(super) async fn jobs(State(app): State<Arc<App>>, part: Asked<Part>) -> Answer<Jobs> {
    let Query(part) = part?;
    let jobs = app.read(move |store| {
        Ok(Jobs {
            running: store.jobs_in(JobState::Running)?,
            queued: store.jobs_in(JobState::Queued)?,
            settled: store.settled_jobs(part.limit())?,
        })
    });
    Ok(Json(jobs.await?))
}

/// `GET /api/jobs/{id}`.
#[derive(Debug, Serialize)]
pub(super) struct JobWithRuns {
    job: Job,
    /// The newest first.
    runs: Vec<RunSummary>,
}

pub(super) async fn job(State(app): State<Arc<App>>, id: AnId) -> Answer<JobWithRuns> {
    let Path(id) = id?;
    let job = app.read(move |store| {
        let job = store.job(id)?;
        Ok(JobWithRuns { job, runs: store.run_summaries(i64::MAX, MOST_LIMIT, Some(id))? })
    });
    Ok(Json(job.await?))
}

/// `GET /api/runs`, the newest first.
pub(super) async fn runs(
    State(app): State<Arc<App>>,
    part: Asked<Part>,
) -> Answer<Vec<RunSummary>> {
    let Query(part) = part?;
    let before = part.before.unwrap_or(i64::MAX);
    Ok(Json(app.read(move |store| store.run_summaries(before, part.limit(), None)).await?))
}

/// `GET /api/runs/{id}`.
#[derive(Debug, Serialize)]
pub(super) struct RunWithConfig {
    run: Run,
    /// The configuration that it ran under.
    config: Option<serde_json::Value>,
}

pub(super) async fn run(State(app): State<Arc<App>>, id: AnId) -> Answer<RunWithConfig> {
    let Path(id) = id?;
    let read = app.read(move |store| Ok((store.run(id)?, store.run_config(id)?)));
    let (run, config) = read.await?;
    let run = run.ok_or_else(|| no_run(id))?;
    Ok(Json(RunWithConfig { run, config }))
}

pub(super) fn no_run(id: i64) -> Refusal {
    Refusal::not_found(format!("there is no run {id}"))
}

/// A stretch of a run, in so many points of so many digits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    from: Option<u64>,
    to: Option<u64>,
    points: Option<usize>,
    digits: Option<usize>,
    /// Whether the memory of each category is wanted; it is where nothing is said.
    memory: Option<bool>,
}

pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    id: AnId,
    stretch: Asked<Stretch>,
) -> Answer<Course> {
    let (Path(id), Query(stretch)) = (id?, stretch?);
    let points = stretch.points.unwrap_or(USUAL_POINTS).clamp(1, MOST_POINTS);
    let (from, to) = (stretch.from.unwrap_or(1), stretch.to.unwrap_or(u64::MAX));
    let read = app.read(move |store| Ok((store.run(id)?, store.curve(id, from, to, points)?)));
    let (run, curve) = read.await?;
    run.ok_or_else(|| no_run(id))?;
    let course = Course::new(id, &curve, stretch.digits);
    Ok(Json(if stretch.memory == Some(false) { course.without_memory() } else { course }))
}

/// `GET /api/runs/{id}/evals`, in order.
pub(super) async fn evals(State(app): State<Arc<App>>, id: AnId) -> Answer<Vec<EvalRow>> {
    let Path(id) = id?;
    let (run, evals) = app.read(move |store| Ok((store.run(id)?, store.evals(id)?))).await?;
    run.ok_or_else(|| no_run(id))?;
    Ok(Json(evals))
}

/// Which evaluation, the newest where it is not said; and which of its sets, all where it is not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AtStep {
    step: Option<u64>,
    set: Option<String>,
    #[serde(default)]
    base: bool,
}

/// `GET /api/runs/{id}/samples`.
#[derive(Debug, Serialize)]
pub(super) struct Samples {
    run_id: i64,
    step: Option<u64>,
    /// The sets that were asked.
    sets: Vec<String>,
    samples: Vec<EvalSample>,
}

pub(super) async fn samples(
    State(app): State<Arc<App>>,
    id: AnId,
    at: Asked<AtStep>,
) -> Answer<Samples> {
    let (Path(id), Query(at)) = (id?, at?);
    let read = app.read(move |store| {
        let step = match at.step {
            _ if at.base => None,
            Some(step) => Some(step),
            None => store.last_eval_step(id)?,
        };
        let mut samples = match step {
            Some(step) => store.eval_samples(id, step)?,
            None if at.base => store.base_answers(id)?,
            None => vec![],
        };
        let mut sets: Vec<String> = samples.iter().map(|sample| sample.set.clone()).collect();
        sets.dedup();
        samples.retain(|sample| at.set.as_ref().is_none_or(|set| *set == sample.set));
        Ok((store.run(id)?, Samples { run_id: id, step, sets, samples }))
    });
    let (run, samples) = read.await?;
    run.ok_or_else(|| no_run(id))?;
    Ok(Json(samples))
}

/// Which question of which set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OneQuestion {
    set: String,
    position: u64,
}

/// An answer and the step that the model was at.
#[derive(Debug, Serialize)]
pub(super) struct AnswerAt {
    step: u64,
    #[serde(flatten)]
    answer: EvalSample,
}

/// `GET /api/runs/{id}/answers`: all answers of a run to one question, in order.
#[derive(Debug, Serialize)]
pub(super) struct Answers {
    set: String,
    position: u64,
    prompt: Option<String>,
    reference: Option<String>,
    /// Those of the base model, where it was asked.
    base: Vec<EvalSample>,
    answers: Vec<AnswerAt>,
}

pub(super) async fn answers(
    State(app): State<Arc<App>>,
    id: AnId,
    question: Asked<OneQuestion>,
) -> Answer<Answers> {
    let (Path(id), Query(question)) = (id?, question?);
    let OneQuestion { set, position } = question;
    let asked = set.clone();
    let read = app.read(move |store| {
        let mut base = store.base_answers(id)?;
        base.retain(|answer| answer.set == asked && answer.position == position);
        Ok((store.run(id)?, base, store.answers_to(id, &asked, position)?))
    });
    let (run, base, answers) = read.await?;
    run.ok_or_else(|| no_run(id))?;
    let first = answers.first().map(|(_, answer)| answer);
    let prompt = first.map(|answer| answer.prompt.clone());
    let reference = first.and_then(|answer| answer.reference.clone());
    let answers = answers.into_iter().map(|(step, answer)| AnswerAt { step, answer }).collect();
    Ok(Json(Answers { set, position, prompt, reference, base, answers }))
}

/// A part of the events, or the newest of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SomeEvents {
    limit: Option<usize>,
    before: Option<i64>,
    kind: Option<String>,
}

/// `GET /api/events`, the newest first.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    some: Asked<SomeEvents>,
) -> Answer<Vec<Event>> {
    let Query(SomeEvents { limit, before, kind }) = some?;
    let limit = Part { limit, before }.limit();
    let read = app.read(move |store| match (kind, before) {
        (Some(kind), None) => store.recent_events_of(&kind, limit).map(Some),
        (None, before) => store.events_before(before.unwrap_or(i64::MAX), limit).map(Some),
        (Some(_), Some(_)) => Ok(None),
    });
    read.await?.map(Json).ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "`kind` and `before` do not go together",
            "leave one of them out",
        )
    })
}

/// `GET /api/plan`: the memory plan of the newest run.
#[derive(Debug, Serialize)]
pub(super) struct NewestPlan {
    run_id: Option<i64>,
    plan: Option<serde_json::Value>,
}

pub(super) async fn plan(State(app): State<Arc<App>>) -> Answer<NewestPlan> {
    let read = app.read(|store| {
        let run_id = store.newest_run()?;
        let plan = run_id.map(|id| store.run(id)).transpose()?.flatten().and_then(|run| run.plan);
        Ok(NewestPlan { run_id, plan })
    });
    Ok(Json(read.await?))
}
