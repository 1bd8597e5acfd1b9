//! SIGKILL, and what the next lives make of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::call::{Call, Kind};
use crate::oracle::{Oracle, most_steps_again};
use crate::random::Random;
use crate::scenario::Scenario;
use crate::tracer::{self, Ending, Verdict};

/// Kills of one state directory before it is left to finish.
const MOST_KILLS: u64 = 8;

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Lives that were cut off.
    pub kills: u64,
    /// State directories that were brought to their end and compared.
    pub finished: u64,
    /// The longest that a life after a kill took to its end, in milliseconds.
    pub longest_life_ms: u64,
    /// The most steps that a life did again.
    pub most_steps_again: u64,
}

/// Kills at random moments, several times in a row, until `kills` lives were cut off: by turns at an
/// operation on the disk and after a while.
pub fn at_random(scenario: &Scenario, oracle: &Oracle, kills: u64, seed: u64) -> Result<Tally> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut span = Span { calls: 2000, milliseconds: 500 };
    while tally.kills < kills {
        let folder = tempfile::tempdir()?;
        let state = folder.path().canonicalize()?.join("state");
        scenario.prepare(&state)?;
        for _ in 0..=random.below(MOST_KILLS) {
            let killed = if random.below(2) == 0 {
                let at = 1 + random.below(span.calls);
                let mut seen = 0;
                let killed = kill_when(scenario, &state, |call| {
                    seen = call.number;
                    call.number == at
                })?;
                span.calls = if killed { span.calls } else { seen.max(1) };
                killed
            } else {
                kill_after(scenario, &state, &mut span, &mut random)?
            };
            tally.kills += u64::from(killed);
            if !killed {
                break;
            }
        }
        finish(scenario, oracle, &state, &mut tally)
            .with_context(|| format!("seed {seed}, after {} kills", tally.kills))?;
    }
    Ok(tally)
}

/// How long an undisturbed life seems to be.
struct Span {
    calls: u64,
    milliseconds: u64,
}

/// Kills a life right before the first call for which `when` is true; whether it came.
pub fn kill_when(
    scenario: &Scenario,
    state: &Path,
    mut when: impl FnMut(&Call) -> bool,
) -> Result<bool> {
    let mut command = scenario.daemon(state)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut watcher = |call: &Call| if when(call) { Verdict::Kill } else { Verdict::Go };
    match tracer::run(&mut command, state, &mut watcher)? {
        Ending::Signal(libc::SIGKILL) => Ok(true),
        Ending::Code(0) => Ok(false),
        other => bail!("a life ended with {other:?}"),
    }
}

/// Sends `signal` at operation `number` of a life, then lets the next one finish; whether there
/// were so many operations.
pub fn at_signal(scenario: &Scenario, oracle: &Oracle, signal: i32, number: u64) -> Result<bool> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().canonicalize()?.join("state");
    scenario.prepare(&state)?;
    let mut sent = None;
    let mut watcher = |call: &Call| {
        if call.number != number {
            return Verdict::Go;
        }
        sent = Some(call.label());
        Verdict::Signal(signal)
    };
    let mut command = scenario.daemon(&state)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let ending = tracer::run(&mut command, &state, &mut watcher)?;
    let Some(label) = sent else { return Ok(false) };
    // Before it listens for signals, the signal ends it.
    let is_fine = ending == Ending::Code(0) || ending == Ending::Signal(signal);
    ensure!(is_fine, "signal {signal} at operation {number} ({label}): it ended with {ending:?}");
    finish(scenario, oracle, &state, &mut Tally::default())
        .with_context(|| format!("after signal {signal} at operation {number} ({label})"))?;
    Ok(true)
}

fn kill_after(
    scenario: &Scenario,
    state: &Path,
    span: &mut Span,
    random: &mut Random,
) -> Result<bool> {
    let mut command = scenario.daemon(state)?;
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let until = begun + Duration::from_millis(random.below(span.milliseconds));
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "a life ended with {status}");
            span.milliseconds = (begun.elapsed().as_millis() as u64).max(1);
            return Ok(false);
        }
        sleep(Duration::from_millis(1));
    }
    child.kill()?;
    Ok(!child.wait()?.success())
}

fn finish(scenario: &Scenario, oracle: &Oracle, state: &Path, tally: &mut Tally) -> Result<()> {
    let begun = Instant::now();
    let output = scenario.live(state)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the last life ended with {}: {errors}", output.status);
    oracle.check(state)?;
    tally.finished += 1;
    tally.most_steps_again = tally.most_steps_again.max(most_steps_again(state)?);
    tally.longest_life_ms = tally.longest_life_ms.max(begun.elapsed().as_millis() as u64);
    Ok(())
}

/// One boundary of a life: the Nth call with this label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boundary {
    /// What the call is about.
    pub label: String,
    /// Counted from 1.
    pub occurrence: u64,
}

/// Counts calls by what they are about.
#[derive(Default)]
struct Counter(BTreeMap<String, u64>);

impl Counter {
    fn count(&mut self, call: &Call) -> Option<Boundary> {
        // A daemon's own log is neither waited for nor read again.
        if !call.kind.is_boundary() || call.path.starts_with("logs") {
            return None;
        }
        let label = call.label();
        let count = self.0.entry(label.clone()).or_default();
        *count += 1;
        Some(Boundary { label, occurrence: *count })
    }
}

/// The boundaries of a life from here on; the state directory is used up.
pub fn boundaries(scenario: &Scenario, state: &Path) -> Result<Vec<Boundary>> {
    let (mut counter, mut all) = (Counter::default(), Vec::new());
    kill_when(scenario, state, |call| {
        all.extend(counter.count(call));
        false
    })?;
    Ok(all)
}

/// Kills right before `boundary`; whether it came.
fn kill_at(scenario: &Scenario, state: &Path, boundary: &Boundary) -> Result<bool> {
    let mut counter = Counter::default();
    kill_when(scenario, state, |call| counter.count(call).as_ref() == Some(boundary))
}

/// Kills one life at `first`, the next one at each boundary that `choose` picks of those that it
/// has, and lets the third one finish. Without boundaries of its own the second one finishes.
pub fn at_boundary(
    scenario: &Scenario,
    oracle: &Oracle,
    first: &Boundary,
    choose: &mut dyn FnMut(Vec<Boundary>) -> Vec<Boundary>,
    tally: &mut Tally,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().canonicalize()?;
    let crashed = root.join("crashed");
    let state = root.join("state");
    scenario.prepare(&state)?;
    ensure!(kill_at(scenario, &state, first)?, "{first:?} did not come");
    tally.kills += 1;
    copy(&state, &crashed)?;
    finish(scenario, oracle, &state, tally).with_context(|| format!("after {first:?}"))?;
    let again = |work: &mut dyn FnMut(&Path) -> Result<()>| -> Result<()> {
        std::fs::remove_dir_all(&state)?;
        copy(&crashed, &state)?;
        work(&state)
    };
    let mut second = Vec::new();
    again(&mut |state| {
        second = boundaries(scenario, state)?;
        Ok(())
    })?;
    for boundary in choose(second) {
        again(&mut |state| {
            if kill_at(scenario, state, &boundary)? {
                tally.kills += 1;
            }
            finish(scenario, oracle, state, tally)
                .with_context(|| format!("after {first:?}, then {boundary:?}"))
        })?;
    }
    Ok(())
}

/// Copies a folder, file by file.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_file() {
            let modified = entry.metadata()?.modified()?;
            std::fs::copy(&source, &target)?;
            std::fs::File::options().write(true).open(&target)?.set_modified(modified)?;
        }
    }
    Ok(())
}

/// Whether a call is one that a durable write consists of.
pub(crate) fn writes(call: &Call) -> bool {
    matches!(call.kind, Kind::Create | Kind::Write | Kind::MakeFolder | Kind::Truncate)
}
