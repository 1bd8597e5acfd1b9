//! What an undisturbed run leaves, and whether another one left the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rusqlite::Connection;
use sha2::{Digest, Sha256};

use crate::scenario::Scenario;

/// The folders in which a file that was given to the daemon may lie.
const PLACES: [&str; 4] = ["inbox", "processing", "done", "failed"];

/// A step of the job that learns from the file with this SHA-256.
type At = (String, i64);

/// The bits of a step: loss, norm of the gradient, and tokens learned from so far.
type StepBits = (u64, u64, i64);

/// What counts of a finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oracle {
    course: Course,
    /// The same with the files the other way round.
    reversed: Option<Course>,
    /// SHA-256 of the files that were learned from, one after another.
    pub data: Vec<String>,
}

/// What was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Course {
    /// Every step's bits.
    steps: BTreeMap<At, StepBits>,
    /// Every evaluation's figures and samples.
    evals: BTreeMap<At, String>,
    /// SHA-256 of the model's files.
    model: BTreeMap<String, String>,
}

impl Course {
    fn of(state: &Path) -> Result<Self> {
        Ok(Self { steps: steps(state)?, evals: evals(state)?, model: model(state)? })
    }

    /// Runs the scenario undisturbed in `state`, which does not exist yet.
    fn undisturbed(scenario: &Scenario, state: &Path) -> Result<Self> {
        scenario.prepare(state)?;
        let output = scenario.live(state)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the undisturbed run failed: {errors}");
        let course = Self::of(state)?;
        ensure!(!course.steps.is_empty() && !course.evals.is_empty(), "it did nothing");
        Ok(course)
    }

    fn check(&self, found: &Self) -> Result<()> {
        let (is, was) = (&found.steps, &self.steps);
        ensure!(is == was, "other steps: {is:?}, not {was:?}");
        let (is, was) = (&found.evals, &self.evals);
        ensure!(is == was, "other evaluations: {is:?}, not {was:?}");
        ensure!(found.model == self.model, "another model");
        Ok(())
    }
}

impl Oracle {
    /// Runs the scenario undisturbed in `state`, which does not exist yet.
    pub fn ask(scenario: &Scenario, state: &Path) -> Result<Self> {
        let course = Course::undisturbed(scenario, state)?;
        let mut other = scenario.clone();
        other.data.reverse();
        let place = state.with_extension("reversed");
        let reversed = (other.data.len() > 1).then(|| Course::undisturbed(&other, &place));
        let oracle = Self {
            course,
            reversed: reversed.transpose()?,
            data: scenario
                .data
                .iter()
                .map(|path| Ok(digest(&fs::read(path)?)))
                .collect::<Result<_>>()?,
        };
        oracle.check(state)?;
        Ok(oracle)
    }

    /// Says where a state directory whose daemon has finished differs from the undisturbed one.
    pub fn check(&self, state: &Path) -> Result<()> {
        self.course.check(&Course::of(state)?)?;
        self.check_places(state)
    }

    /// The same where a file that could not be looked at in its turn may have come after the other.
    pub fn check_in_any_order(&self, state: &Path) -> Result<()> {
        let found = Course::of(state)?;
        if self.reversed.as_ref() != Some(&found) {
            self.course.check(&found)?;
        }
        self.check_places(state)
    }

    /// Every file lies in done/ and its job is done.
    fn check_places(&self, state: &Path) -> Result<()> {
        for data in &self.data {
            let places = places(state, data)?;
            // Under another name where its own could not be looked at.
            let is_done = places.len() == 1 && places[0].starts_with("done");
            ensure!(is_done, "the file lies in {places:?}");
        }
        let left = fs::read_dir(state.join("processing"))?.count();
        ensure!(left == 0, "{left} files are left in processing/");
        let jobs: Vec<String> = rows(state, "SELECT state FROM jobs", |row| row.get(0))?;
        let all_done = jobs.len() == self.data.len() && jobs.iter().all(|state| state == "done");
        ensure!(all_done, "jobs are {jobs:?}");
        Ok(())
    }
}

/// The most steps that a life had to do again which one before it had done.
pub(crate) fn most_steps_again(state: &Path) -> Result<u64> {
    let query = "SELECT r.job_id, min(m.step), max(m.step)
        FROM metrics m JOIN runs r ON r.id = m.run_id GROUP BY r.id ORDER BY r.id";
    let (mut most, mut done) = (0, BTreeMap::<i64, i64>::new());
    let runs: Vec<(i64, i64, i64)> =
        rows(state, query, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for (job, first, last) in runs {
        let before = done.entry(job).or_default();
        most = most.max(*before + 1 - first);
        *before = last.max(*before);
    }
    Ok(u64::try_from(most).unwrap_or(0))
}

/// Where files with these contents lie.
fn places(state: &Path, sha256: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for place in PLACES {
        for entry in fs::read_dir(state.join(place))? {
            let path = entry?.path();
            if path.is_file() && digest(&fs::read(&path)?) == sha256 {
                found.push(path.strip_prefix(state)?.to_owned());
            }
        }
    }
    Ok(found)
}

fn rows<T>(
    state: &Path,
    query: &str,
    take: impl FnMut(&rusqlite::Row) -> rusqlite::Result<T>,
) -> Result<Vec<T>> {
    let connection = Connection::open(state.join("chandler.db"))?;
    let mut statement = connection.prepare(query)?;
    Ok(statement.query_map([], take)?.collect::<rusqlite::Result<_>>()?)
}

/// The steps of all runs. A step that was done again after a crash must have had the same bits.
fn steps(state: &Path) -> Result<BTreeMap<At, StepBits>> {
    let query = "SELECT j.sha256, m.step, m.loss, m.grad_norm, m.num_tokens
        FROM metrics m JOIN runs r ON r.id = m.run_id JOIN jobs j ON j.id = r.job_id";
    let found = rows(state, query, |row| {
        let bits = |at| row.get::<_, f64>(at).map(f64::to_bits);
        Ok(((row.get(0)?, row.get(1)?), (bits(2)?, bits(3)?, row.get(4)?)))
    })?;
    once(found, "step")
}

fn evals(state: &Path) -> Result<BTreeMap<At, String>> {
    let query = "SELECT j.sha256, e.step, COALESCE(e.loss, '-') || ' ' || COALESCE(e.exact_match, '-') || ' ' || COALESCE((
            SELECT group_concat(s.position || s.prompt || s.text || s.new_tokens || COALESCE(s.score, '-'), '|')
            FROM answers s WHERE s.run_id = e.run_id AND s.step = e.step), '-')
        FROM evals e JOIN runs r ON r.id = e.run_id JOIN jobs j ON j.id = r.job_id";
    let found =
        rows(state, query, |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, String>(2)?)))?;
    once(found, "evaluation at")
}

fn once<T: PartialEq>(found: Vec<(At, T)>, what: &str) -> Result<BTreeMap<At, T>> {
    let mut all = BTreeMap::new();
    for (at, value) in found {
        if let Some(before) = all.get(&at)
            && *before != value
        {
            bail!("{what} {at:?} came out differently the second time");
        }
        all.insert(at, value);
    }
    Ok(all)
}

fn model(state: &Path) -> Result<BTreeMap<String, String>> {
    let folder = state.join("model");
    let entries = fs::read_dir(&folder).context("there is no model")?;
    entries
        .map(|entry| {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, digest(&fs::read(&path)?)))
        })
        // The manifest has times and paths in it.
        .filter(|file: &Result<(String, String)>| {
            file.as_ref().map_or(true, |(name, _)| name != chandler_durable::MANIFEST_NAME)
        })
        .collect()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
