//! What is known at one moment: all that a picture is made of.

use std::collections::BTreeMap;

use crate::control::LiveStatus;
use crate::store::{Event, Job, JobState, RunState};

/// Everything that the view shows of the world.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scene {
    pub(crate) state_dir: String,
    pub(crate) daemon: Daemon,
    /// As the database has it, which also holds for a daemon that is yet to start.
    pub(crate) paused: bool,
    pub(crate) base_model: Option<String>,
    /// How many jobs are in each state.
    pub(crate) counts: Vec<(JobState, u64)>,
    /// What runs, what waits in its order, and what was settled, the newest first.
    pub(crate) jobs: Vec<Job>,
    /// The run that goes on, or else the newest.
    pub(crate) run: Option<ShownRun>,
    /// The newest evaluation with answers, or else the newest.
    pub(crate) eval: Option<ShownEval>,
    /// The newest first.
    pub(crate) events: Vec<Event>,
    /// Why the database cannot be read.
    pub(crate) trouble: Option<String>,
}

/// The daemon, as far as it answers.
#[derive(Debug, Clone, Default)]
pub(crate) enum Daemon {
    #[default]
    NotRunning,
    Running(Box<LiveStatus>),
    /// It may be running, but does not answer as it should.
    Unclear(String),
}

impl Daemon {
    /// What it says of itself.
    pub(crate) fn live(&self) -> Option<&LiveStatus> {
        match self {
            Self::Running(live) => Some(live),
            _ => None,
        }
    }
}

/// A run with its newest steps.
#[derive(Debug, Clone)]
pub(crate) struct ShownRun {
    pub(crate) id: i64,
    pub(crate) job_id: Option<i64>,
    pub(crate) state: RunState,
    pub(crate) plan: Option<ShownPlan>,
    /// In order, without gaps.
    pub(crate) points: Vec<Point>,
}

/// What a run was planned to take, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShownPlan {
    pub(crate) peak: u64,
    pub(crate) budget: Option<u64>,
}

/// A step in a curve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    pub(crate) lr: f64,
}

/// An evaluation.
#[derive(Debug, Clone)]
pub(crate) struct ShownEval {
    pub(crate) run_id: i64,
    pub(crate) step: u64,
    /// Figures by name, such as the loss on held-out rows.
    pub(crate) figures: BTreeMap<&'static str, f64>,
    pub(crate) samples: Vec<Sample>,
}

/// A question with the answer that the model gave.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// The set that the question is of.
    pub(crate) set: String,
    pub(crate) prompt: String,
    pub(crate) answer: String,
    /// The answer that it should have, where that is known.
    pub(crate) reference: Option<String>,
    pub(crate) exact_match: Option<bool>,
}
