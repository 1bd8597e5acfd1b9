//! All that is watched of one run, and how it is recorded.

use std::time::{Duration, Instant};

use chandler_evaluator::Better;

use super::usual::Window;
use super::{Alert, EVENT_KIND, EvalRegression, LossSpike, ThroughputDrop};
use crate::config::AlertsConfig;
use crate::store::{EvalRow, Run, RunState, ScoreRow, StepRow, Store, StoreError};

/// Steps whose median is the usual time of one.
const PACE_STEPS: usize = 64;
/// Steps before that is known.
const FEWEST: usize = 5;
/// Steps of the run before that are looked at again.
const RECALLED: u64 = 512;

/// The detectors of one run.
#[derive(Debug, Clone)]
pub struct RunAlerts {
    enabled: bool,
    loss: LossSpike,
    speed: ThroughputDrop,
    evals: EvalRegression,
    /// Seconds from step to step.
    pace: Window,
    begun: Instant,
    last_step: Option<Duration>,
}

impl RunAlerts {
    /// Detectors that have seen nothing.
    pub fn new(config: &AlertsConfig) -> Self {
        let lasting = Duration::from_secs_f64(config.throughput_seconds);
        Self {
            enabled: config.enabled,
            loss: LossSpike::new(config.loss_spike),
            speed: ThroughputDrop::new(config.throughput_drop, lasting),
            evals: EvalRegression::new(config.eval_regression),
            pace: Window::new(PACE_STEPS),
            begun: Instant::now(),
            last_step: None,
        }
    }

    /// Detectors that know what was usual in `before`, the run that this one goes on from. One that
    /// failed says nothing of what is usual.
    pub fn going_on(
        config: &AlertsConfig,
        store: &Store,
        before: Option<&Run>,
    ) -> Result<Self, StoreError> {
        let mut alerts = Self::new(config);
        let was_cut_off = |run: &&Run| matches!(run.state, RunState::Stopped | RunState::Crashed);
        let Some(run) = before.filter(was_cut_off) else { return Ok(alerts) };
        let after = store.last_step(run.id)?.unwrap_or(0).saturating_sub(RECALLED);
        for row in store.steps_after(run.id, after, RECALLED as usize)? {
            alerts.loss.see(row.step, row.loss);
            row.tokens_per_s.into_iter().for_each(|speed| alerts.speed.recall(speed));
        }
        for row in store.evals(run.id)? {
            alerts.evaluation(&row);
        }
        Ok(alerts)
    }

    /// Takes in a step that is done.
    pub fn step(&mut self, row: &StepRow) -> Vec<Alert> {
        self.step_at(row, self.begun.elapsed())
    }

    fn step_at(&mut self, row: &StepRow, at: Duration) -> Vec<Alert> {
        if let Some(last) = self.last_step.replace(at) {
            self.pace.push(at.saturating_sub(last).as_secs_f64());
        }
        let speed = row.tokens_per_s.and_then(|speed| self.speed.see(row.step, speed, at));
        let told = self.loss.see(row.step, row.loss).into_iter().chain(speed);
        told.filter(|_| self.enabled).collect()
    }

    /// Takes in the figures of an evaluation: the loss and the matches of the job's own rows, and every
    /// score.
    pub fn evaluation(&mut self, row: &EvalRow) -> Vec<Alert> {
        let figures =
            [("loss", row.loss, Better::Lower), ("exact_match", row.exact_match, Better::Higher)];
        let figures = figures
            .into_iter()
            .filter_map(|(name, value, better)| Some((name.to_owned(), value?, better)));
        // What the figures say already is not told again.
        let is_told = |score: &&ScoreRow| score.metric == "perplexity" || score.is_figure();
        let scores = row.scores.iter().filter(|score| !is_told(score)).map(|score| {
            let better = Better::of_metric(&score.metric);
            (format!("{}/{}", score.set, score.metric), score.value, better)
        });
        let Self { evals, enabled, .. } = self;
        figures
            .chain(scores)
            .filter_map(|(name, value, better)| evals.see(row.step, &name, value, better))
            .filter(|_| *enabled)
            .collect()
    }

    /// The median time from step to step, once there were some.
    pub fn usual_step(&self) -> Option<Duration> {
        let median = self.pace.median().filter(|_| self.pace.len() >= FEWEST)?;
        Duration::try_from_secs_f64(median).ok()
    }
}

/// Logs an alert and records it as an event, from where it goes to whoever is to be told.
pub fn record(
    store: &Store,
    job_id: Option<i64>,
    run_id: Option<i64>,
    alert: &Alert,
) -> Result<(), StoreError> {
    let message = alert.to_string();
    tracing::warn!(step = alert.step, "{message}");
    store.record_event(EVENT_KIND, job_id, run_id, &message, Some(&serde_json::json!(alert)))
}

#[cfg(test)]
mod tests {
    use super::super::AlertKind;
    use super::*;
    use crate::config::Config;

    fn row(step: u64, loss: f64) -> StepRow {
        StepRow {
            step,
            loss,
            grad_norm: 1.0,
            lr: 1e-4,
            num_tokens: step,
            mean_token_accuracy: None,
            tokens_per_s: Some(100.0),
            peak_bytes: None,
            memory: std::collections::BTreeMap::new(),
            layers: vec![],
        }
    }

    fn eval(step: u64, loss: f64) -> EvalRow {
        let loss = Some(loss);
        EvalRow { step, loss, exact_match: Some(0.5), ..EvalRow::default() }
    }

    #[test]
    fn a_run_that_goes_on_knows_what_was_usual() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        for step in 1..=40 {
            store.record_step(run, &row(step, 2.0)).unwrap();
        }
        store.record_eval(run, &eval(20, 1.0), &[]).unwrap();
        let config = AlertsConfig::default();
        let spike = |store: &Store| {
            let before = store.run(run).unwrap();
            let mut alerts = RunAlerts::going_on(&config, store, before.as_ref()).unwrap();
            let at_step = alerts.step(&row(41, 9.0));
            [at_step, alerts.evaluation(&eval(41, 1.5))].concat()
        };
        store.end_run(run, RunState::Failed, None).unwrap();
        assert_eq!(spike(&store), []);
        store.end_run(run, RunState::Stopped, None).unwrap();
        let kinds: Vec<_> = spike(&store).iter().map(|alert| alert.alert).collect();
        assert_eq!(kinds, [AlertKind::LossSpike, AlertKind::EvalRegression]);
    }

    #[test]
    fn a_run_that_goes_on_knows_the_best_scores_of_every_set() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        let row = |step, values: [f64; 5]| {
            let names = [
                ("sums", "numeric"),
                ("sums", "loss"),
                ("sums", "perplexity"),
                ("held-out", "chrf"),
                ("held-out", "loss"),
            ];
            let scores = names.into_iter().zip(values).map(|((set, metric), value)| ScoreRow {
                set: set.to_owned(),
                metric: metric.to_owned(),
                value,
                ..ScoreRow::default()
            });
            EvalRow { step, scores: scores.collect(), ..EvalRow::default() }
        };
        store.record_eval(run, &row(10, [0.9, 1.0, 2.7, 0.8, 1.0]), &[]).unwrap();
        store.end_run(run, RunState::Crashed, None).unwrap();
        let before = store.run(run).unwrap();
        let going_on =
            || RunAlerts::going_on(&AlertsConfig::default(), &store, before.as_ref()).unwrap();
        let told = |row: &EvalRow| -> Vec<String> {
            let alerts = going_on().evaluation(row);
            alerts.into_iter().map(|alert| alert.metric).collect()
        };
        let worse = row(20, [0.1, 9.0, 99.0, 0.1, 9.0]);
        // The loss of the job's own rows is told by its own name, and a perplexity by its loss.
        assert_eq!(told(&worse), ["sums/numeric", "sums/loss", "held-out/chrf"]);
        assert_eq!(told(&row(20, [0.9, 1.0, 2.7, 0.8, 1.0])), [""; 0]);
    }

    #[test]
    fn the_pace_is_known_after_some_steps_and_nothing_is_told_when_turned_off() {
        let mut alerts =
            RunAlerts::new(&AlertsConfig { enabled: false, ..AlertsConfig::default() });
        for step in 1..=30 {
            assert_eq!(alerts.usual_step().is_some(), step > 6, "step {step}");
            // An evaluation after every fifth step.
            let at = Duration::from_secs(2 * step + 60 * (step / 5));
            assert_eq!(alerts.step_at(&row(step, 2.0), at), []);
        }
        assert_eq!(alerts.usual_step(), Some(Duration::from_secs(2)));
        assert_eq!(alerts.step(&row(31, 99.0)), []);
    }

    #[test]
    fn an_alert_is_an_event() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        record(&store, None, None, &Alert::not_finite("loss", 7)).unwrap();
        let event = &store.recent_events(1).unwrap()[0];
        assert_eq!(
            (event.kind.as_str(), event.details.as_ref().unwrap()["step"].as_u64()),
            ("alert", Some(7))
        );
    }
}
