//! An operation on the disk that fails, for every operation there is.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::call::{Call, Kind};
use crate::kills::writes;
use crate::oracle::Oracle;
use crate::scenario::Scenario;
use crate::tracer::{self, Ending, Errno, Verdict};

/// Which operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The Nth alone.
    Once(Errno),
    /// Every one from the Nth on that needs room: the disk is full.
    Full,
}

/// What became of a life with a failing operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended before there were so many operations.
    NotReached,
    /// It went through all the same.
    Survived,
    /// It ended with this code and a message, and the next life finished.
    Ended(i32),
}

/// Codes that `chandler` ends with by its own decision: `cli/src/exit.rs`.
const DOCUMENTED: std::ops::RangeInclusive<i32> = 0..=8;

/// Has operation `number` of a life fail, then lets the next life finish.
pub fn at(scenario: &Scenario, oracle: &Oracle, failing: Failing, number: u64) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().canonicalize()?;
    let state = root.join("state");
    scenario.prepare(&state)?;
    let words = root.join("words");
    let mut failed = None;
    let mut watcher = |call: &Call| {
        let fails = match failing {
            Failing::Once(errno) => (call.number == number).then_some(errno),
            Failing::Full => (call.number >= number && writes(call)).then_some(libc::ENOSPC),
        };
        if fails.is_some() && failed.is_none() {
            failed = Some(call.label());
        }
        fails.map_or(Verdict::Go, Verdict::Fail)
    };
    let mut command = scenario.daemon(&state)?;
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&words)?);
    let ending = tracer::run(&mut command, &state, &mut watcher)?;
    let words = std::fs::read_to_string(&words)?;
    let Some(label) = failed else { return Ok(Outcome::NotReached) };
    judge(scenario, oracle, &state, ending, &words)
        .with_context(|| format!("{failing:?} at operation {number} ({label}):\n{words}"))
}

/// The disk is full from operation `number` on, for `calls` operations that need room; then there
/// is some again. The daemon must say that it waits, and then finish, in one life.
pub fn full_for_a_while(
    scenario: &Scenario,
    oracle: &Oracle,
    number: u64,
    calls: u64,
) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().canonicalize()?;
    let state = root.join("state");
    scenario.prepare(&state)?;
    let words = root.join("words");
    let mut failed = 0;
    let mut watcher = |call: &Call| {
        if call.number >= number && failed < calls && writes(call) && !call.path.starts_with("logs")
        {
            failed += 1;
            return Verdict::Fail(libc::ENOSPC);
        }
        // All is done once the file has left processing/.
        let is_done = call.kind == Kind::Sync && call.path.starts_with("done");
        if is_done { Verdict::Signal(libc::SIGTERM) } else { Verdict::Go }
    };
    let mut command = scenario.lasting_daemon(&state)?;
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&words)?);
    let ending = tracer::run(&mut command, &state, &mut watcher)?;
    let words = std::fs::read_to_string(&words)?;
    ensure!(failed == calls, "{failed} operations failed:\n{words}");
    ensure!(ending == Ending::Code(0), "it ended with {ending:?}:\n{words}");
    oracle.check_in_any_order(&state).with_context(|| words.clone())?;
    Ok(words)
}

fn judge(
    scenario: &Scenario,
    oracle: &Oracle,
    state: &Path,
    ending: Ending,
    words: &str,
) -> Result<Outcome> {
    ensure!(!words.contains("panicked"), "it panicked");
    let Ending::Code(code) = ending else { anyhow::bail!("it ended with {ending:?}") };
    ensure!(DOCUMENTED.contains(&code), "it ended with code {code}");
    if code == 0 && oracle.check_in_any_order(state).is_ok() {
        return Ok(Outcome::Survived);
    }
    ensure!(code == 0 || words.contains("hint: "), "it ended with {code} and without a hint");
    let next = scenario.live(state)?;
    let errors = String::from_utf8_lossy(&next.stderr);
    ensure!(next.status.success(), "the next life ended with {}: {errors}", next.status);
    oracle.check_in_any_order(state).with_context(|| format!("the next life:\n{errors}"))?;
    Ok(Outcome::Ended(code))
}
