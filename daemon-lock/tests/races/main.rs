//! Many processes want one lock at the same moment: never do two have it.
//!
//! ```sh
//! cargo test -p chandler-daemon-lock --test races -- --races 20000
//! ```
//!
//! Each race forks fresh processes, which wait at a gate until all are there. Owners write into a
//! witness file when they begin and when they end. In some races the owner is killed, its lock file
//! is removed or replaced under it, or a text was left behind in the file. Before all that the same
//! race is run with a lock that is none, which the witness must see through.

mod contestant;
mod fork;
mod witness;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chandler_daemon_lock::Holder;
use contestant::{By, STRUCK, Task};
use fork::{Contestant, Course};
use witness::{Account, Witness};

const CONTESTANTS: usize = 50;
/// So many in `cargo test`.
const SHORT: u64 = 200;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is done to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    None,
    /// `kill -9`.
    Kill,
    /// Its lock file is removed.
    Remove,
    /// Another file is put in its lock file's place.
    Replace,
}

#[derive(Debug, Default)]
struct Tally {
    owners: u64,
    overlaps: u64,
    ownerless: u64,
    killed: u64,
    vandalized: u64,
    noticed: u64,
    stale: u64,
}

fn main() -> ExitCode {
    match campaign(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was as it must be.
fn campaign(arguments: &[String]) -> Outcome<bool> {
    let races = match arguments {
        [flag, number] if flag == "--races" => number.parse()?,
        // The filter of a `cargo test NAME` that means another test.
        [filter, ..] if !filter.starts_with('-') && !"races".contains(filter.as_str()) => {
            return Ok(true);
        }
        _ => SHORT,
    };
    let folder = tempfile::tempdir()?;
    let mut seen = Tally::default();
    for _ in 0..5 {
        let stay = Some(Duration::from_millis(2));
        let task = Task { by: By::PidFile, tries: 1, stay, folder: folder.path().to_owned() };
        race(&task, Blow::None, &mut seen)?;
    }
    let begun = Instant::now();
    let mut tally = Tally::default();
    for number in 0..races {
        tally.stale += u64::from(leave_text(folder.path(), number)?);
        let blow = match number % 16 {
            1 | 5 | 9 | 13 => Blow::Kill,
            3 => Blow::Remove,
            11 => Blow::Replace,
            _ => Blow::None,
        };
        // Of a lock that is a file alone, its owner must look after it: a removed one is another.
        let by = match (blow, number % 3) {
            (Blow::None | Blow::Kill, 0) => By::File,
            _ => By::Folder,
        };
        let stay = (blow == Blow::None).then(|| Duration::from_micros(number * 37 % 1500));
        let tries = 1 + (number % 3) as u32;
        race(&Task { by, tries, stay, folder: folder.path().to_owned() }, blow, &mut tally)?;
    }
    report(races, &tally, seen.overlaps, begun.elapsed());
    let quiet = tally.overlaps == 0 && tally.ownerless == 0;
    Ok(quiet && tally.noticed == tally.vandalized && seen.overlaps > 0)
}

fn report(races: u64, tally: &Tally, seen: u64, took: Duration) {
    let Tally { owners, overlaps, ownerless, killed, vandalized, noticed, stale } = tally;
    let text = format!(
        "{races} races of {CONTESTANTS} processes in {:.0} s\n\
         owners                     {owners}\n\
         killed with -9             {killed}\n\
         files removed or replaced  {vandalized}, noticed by their owners: {noticed}\n\
         texts left behind          {stale}\n\
         races without an owner     {ownerless}\n\
         two owners at once         {overlaps} (with a pid file in 5 races: {seen})\n",
        took.as_secs_f64(),
    );
    // Whoever closed the output does not want to know.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// In every fifth race the file names a process that is dead, or one that has its pid by now.
fn leave_text(folder: &Path, number: u64) -> Outcome<bool> {
    if !number.is_multiple_of(5) {
        return Ok(false);
    }
    let this = Holder::this_process();
    let left = match number % 3 {
        0 => serde_json::to_string(&Holder { pid: u32::MAX, ..this })?,
        1 => serde_json::to_string(&Holder { start_ticks: Some(1), ..this })?,
        _ => "{\"pid\": 12".to_owned(),
    };
    File::create(folder.join("lock"))?.write_all(left.as_bytes())?;
    Ok(true)
}

fn race(task: &Task, blow: Blow, tally: &mut Tally) -> Outcome<()> {
    let folder = &task.folder;
    let mut witness = Witness::open(&folder.join("witness"))?;
    if folder.join(STRUCK).exists() {
        fs::remove_file(folder.join(STRUCK))?;
    }
    let (gate, keeper) = io::pipe()?;
    let (lines, out) = io::pipe()?;
    let course = Course { gate, keeper, out };
    let start = || Contestant::start(&course, || contend(task));
    let contestants = (0..CONTESTANTS).map(|_| start()).collect::<io::Result<Vec<_>>>()?;
    let mut lines = BufReader::new(lines);
    for _ in 0..CONTESTANTS {
        lines.read_line(&mut String::new())?;
    }
    // The gate opens.
    drop(course);
    let killed = watch(lines, folder, blow, &contestants, &mut witness, tally)?;
    for contestant in contestants {
        let id = contestant.id();
        if !contestant.wait()? && killed != Some(id) {
            return Err(format!("contestant {id} did not end well").into());
        }
    }
    let Account { owners, overlaps, noticed } = witness.account()?;
    tally.owners += owners;
    tally.overlaps += overlaps;
    tally.noticed += noticed;
    tally.ownerless += u64::from(owners == 0);
    Ok(())
}

/// Whether a contestant did what it was told.
fn contend(task: &Task) -> bool {
    contestant::contend(task).map_err(|error| eprintln!("{error}")).is_ok()
}

/// Follows what the contestants say until the last of them has ended, and deals the blow to the
/// first owner. Returns whom it killed.
fn watch(
    lines: BufReader<PipeReader>,
    folder: &Path,
    blow: Blow,
    contestants: &[Contestant],
    witness: &mut Witness,
    tally: &mut Tally,
) -> Outcome<Option<u32>> {
    let mut struck = blow == Blow::None;
    let mut killed = None;
    for line in lines.lines() {
        let line = line?;
        let Some(pid) = line.strip_prefix("owner ") else { continue };
        if std::mem::replace(&mut struck, true) {
            continue;
        }
        let pid: u32 = pid.parse()?;
        let owner = contestants.iter().find(|contestant| contestant.id() == pid);
        match blow {
            Blow::None => {}
            Blow::Kill => {
                witness.say("kill", pid)?;
                File::create(folder.join(STRUCK))?;
                owner.ok_or("an owner that was not started")?.kill()?;
                tally.killed += 1;
                killed = Some(pid);
            }
            Blow::Remove => {
                fs::remove_file(folder.join("lock"))?;
                File::create(folder.join(STRUCK))?;
                tally.vandalized += 1;
            }
            Blow::Replace => {
                File::create(folder.join("other"))?;
                rustix::fs::rename(folder.join("other"), folder.join("lock"))?;
                File::create(folder.join(STRUCK))?;
                tally.vandalized += 1;
            }
        }
    }
    Ok(killed)
}
