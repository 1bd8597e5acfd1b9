//! Reads what there is to see, twice a second, in a thread of its own: a daemon that takes its time
//! to answer holds up no key.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::scene::{Daemon, Point, Sample, Scene, ShownEval, ShownPlan, ShownRun};
use super::ui::Message;
use crate::commands::steer;
use crate::control::{self, ControlError, Request, Response};
use crate::failure::in_one_line;
use crate::state_dir::StateDir;
use crate::store::{JobState, Store, StoreError};

/// How often is read.
const READ_EVERY: Duration = Duration::from_millis(500);
/// Steps of the curves.
const POINTS: usize = 1024;
/// Settled jobs of the list.
const SETTLED: usize = 50;
/// Events of the list.
const EVENTS: usize = 100;
/// Runs that are looked into for an evaluation, where the newest has none yet.
const RUNS_WITH_EVAL: usize = 5;

/// What the thread has to tell.
pub(super) enum News {
    Scene(Box<Scene>),
    Answer(Message),
}

/// The thread that reads, from outside. It ends with this.
pub(super) struct Source {
    requests: Sender<Request>,
    news: Receiver<News>,
    state_dir: String,
}

impl Source {
    pub(super) fn start(state: &StateDir) -> io::Result<Self> {
        let (requests, asked) = channel();
        let (tell, news) = channel();
        let mut reader = Reader { state: state.clone(), store: None, run: None };
        std::thread::Builder::new()
            .name("reader".to_owned())
            .spawn(move || reader.work(&asked, &tell))?;
        Ok(Self { requests, news, state_dir: state.root().display().to_string() })
    }

    /// What is shown before anything was read.
    pub(super) fn first(&self) -> Scene {
        Scene { state_dir: self.state_dir.clone(), ..Scene::default() }
    }

    pub(super) fn news(&self) -> &Receiver<News> {
        &self.news
    }

    /// Has the daemon asked, or the database changed where none is running; the answer is news.
    pub(super) fn ask(&self, request: Request) {
        // A thread that has ended will show as silence.
        let _ = self.requests.send(request);
    }
}

struct Reader {
    state: StateDir,
    /// Opened when first needed, and again after an error.
    store: Option<Store>,
    /// The run that was shown last, whose points are read on.
    run: Option<ShownRun>,
}

impl Reader {
    fn work(&mut self, asked: &Receiver<Request>, tell: &Sender<News>) {
        loop {
            let news = News::Scene(Box::new(self.scene()));
            if tell.send(news).is_err() {
                return;
            }
            match asked.recv_timeout(READ_EVERY) {
                Ok(request) => {
                    let answer =
                        Message::of(steer::act(&self.state, &request).map(|acted| acted.message));
                    if tell.send(News::Answer(answer)).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn scene(&mut self) -> Scene {
        let mut scene = Scene {
            state_dir: self.state.root().display().to_string(),
            daemon: daemon(&self.state),
            ..Scene::default()
        };
        if let Err(error) = self.read(&mut scene) {
            self.store = None;
            scene.trouble = Some(in_one_line(&error));
        }
        scene
    }

    fn read(&mut self, scene: &mut Scene) -> Result<(), StoreError> {
        let store = match self.store.take() {
            Some(store) => store,
            None => Store::open_to_read(&self.state.database())?,
        };
        let known = self.run.take();
        let read = store.at_one_moment(|store| read(store, known, scene));
        self.store = Some(store);
        self.run.clone_from(&scene.run);
        read
    }
}

fn daemon(state: &StateDir) -> Daemon {
    match control::ask(state, &Request::Status) {
        Ok(Response::Status(live)) => Daemon::Running(live),
        Ok(_) => Daemon::Unclear("its answer is none to what was asked".to_owned()),
        Err(ControlError::NotRunning { .. }) => Daemon::NotRunning,
        Err(error) => Daemon::Unclear(in_one_line(&error)),
    }
}

fn read(store: &Store, known: Option<ShownRun>, scene: &mut Scene) -> Result<(), StoreError> {
    scene.paused = store.is_paused()?;
    scene.base_model =
        store.binding()?.map(|model| format!("{} ({})", model.base_model, model.architecture));
    scene.counts = store.count_jobs()?;
    scene.jobs = store.jobs_in(JobState::Running)?;
    scene.jobs.extend(store.jobs_in(JobState::Queued)?);
    scene.jobs.extend(store.settled_jobs(SETTLED)?);
    scene.events = store.recent_events(EVENTS)?;
    let current = scene.daemon.live().and_then(|live| live.current.as_ref());
    let run = match current {
        Some(current) => Some(current.run_id),
        None => store.newest_run()?,
    };
    if let Some(id) = run {
        scene.run = shown_run(store, id, known)?;
        scene.eval = newest_eval(store, id)?;
    }
    Ok(())
}

fn shown_run(
    store: &Store,
    id: i64,
    known: Option<ShownRun>,
) -> Result<Option<ShownRun>, StoreError> {
    let Some(run) = store.run(id)? else { return Ok(None) };
    let mut points = known.filter(|known| known.id == id).map_or_else(Vec::new, |run| run.points);
    let from = match points.last() {
        Some(last) => last.step,
        None => store.last_step(id)?.unwrap_or(0).saturating_sub(POINTS as u64),
    };
    points.extend(store.steps_after(id, from, POINTS)?.into_iter().map(|row| Point {
        step: row.step,
        loss: row.loss,
        grad_norm: row.grad_norm,
        lr: row.lr,
    }));
    points.drain(..points.len().saturating_sub(POINTS));
    let plan = run.plan.as_ref().and_then(|plan| {
        Some(ShownPlan { peak: plan["peak"].as_u64()?, budget: plan["budget"].as_u64() })
    });
    Ok(Some(ShownRun { id, job_id: run.job_id, state: run.state, plan, points }))
}

/// The newest evaluation of this run, or of the newest one before it that has any.
fn newest_eval(store: &Store, run: i64) -> Result<Option<ShownEval>, StoreError> {
    let before = store.run_summaries(run, RUNS_WITH_EVAL, None)?;
    for run_id in std::iter::once(run).chain(before.into_iter().map(|run| run.id)) {
        let Some(eval) = store.evals(run_id)?.pop() else { continue };
        let figures = [("loss", eval.loss), ("exact match", eval.exact_match)];
        let figures = figures.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let samples = store.eval_samples(run_id, eval.step)?.into_iter().map(|sample| Sample {
            set: sample.set,
            prompt: sample.prompt,
            answer: sample.text,
            reference: sample.reference,
            exact_match: sample.exact_match,
        });
        return Ok(Some(ShownEval {
            run_id,
            step: eval.step,
            figures: figures.collect(),
            samples: samples.collect(),
        }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{RunState, StepRow};

    fn step(step: u64) -> StepRow {
        StepRow {
            step,
            loss: step as f64,
            grad_norm: 1.0,
            lr: 1e-3,
            num_tokens: step,
            mean_token_accuracy: None,
            tokens_per_s: None,
            peak_bytes: None,
            memory: std::collections::BTreeMap::new(),
            layers: vec![],
        }
    }

    #[test]
    fn a_run_is_read_on_and_a_lost_database_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        let mut reader = Reader { state: state.clone(), store: None, run: None };
        let scene = reader.scene();
        assert!(matches!(scene.daemon, Daemon::NotRunning));
        assert!(scene.trouble.is_some_and(|trouble| trouble.contains("chandler.db")));

        let store = Store::open(&state.database()).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        store.record_step(run, &step(1)).unwrap();
        let scene = reader.scene();
        assert_eq!(scene.trouble, None);
        assert_eq!(scene.run.unwrap().points.len(), 1);
        store.record_step(run, &step(2)).unwrap();
        store.end_run(run, RunState::Done, None).unwrap();
        let shown = reader.scene().run.unwrap();
        assert_eq!(shown.points.iter().map(|point| point.step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(shown.state, RunState::Done);
        let next = store.begin_run(None, 1, &Config::default()).unwrap();
        assert!(reader.scene().run.is_some_and(|run| run.id == next && run.points.is_empty()));
    }
}
