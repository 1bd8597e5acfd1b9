//! The command line.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chandler_faults::io_errors::{self, Failing, Outcome};
use chandler_faults::kills::{self, Boundary};
use chandler_faults::power::{self, Effort};
use chandler_faults::soak::{self, Duty};
use chandler_faults::{Oracle, Scenario};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

/// Breaks a chandler binary on purpose, and checks that nothing was lost
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary; by default the one beside this program
    #[arg(long, global = true)]
    binary: Option<PathBuf>,
    /// Optimizer steps of a run
    #[arg(long, global = true, default_value_t = 6)]
    steps: u64,
    /// Learn from two files, one after another, and keep one checkpoint of each
    #[arg(long, global = true)]
    two_files: bool,
    /// State directories at work at the same time
    #[arg(long, global = true, default_value_t = 2)]
    jobs: u64,
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    campaign: Campaign,
}

#[derive(Debug, Subcommand)]
enum Campaign {
    /// Kills with SIGKILL at random moments, several times in a row
    Kills {
        #[arg(long, default_value_t = 10_000)]
        rounds: u64,
    },
    /// Kills at every boundary of a durable write
    Boundaries {
        /// Also at every boundary of the life after it
        #[arg(long)]
        pairs: bool,
    },
    /// Has every single operation on the disk fail
    IoErrors {
        #[arg(long, value_enum, default_value_t = Kind::Eio)]
        kind: Kind,
        /// Every so many operations
        #[arg(long, default_value_t = 1)]
        stride: u64,
        /// Beginning with this one
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
    /// Sends SIGTERM or SIGINT at every operation
    Signals {
        /// Every so many operations
        #[arg(long, default_value_t = 1)]
        stride: u64,
    },
    /// Loses the power after every operation
    Power {
        /// Losses for each operation
        #[arg(long, default_value_t = 100)]
        losses: u64,
        /// Start the daemon from every so many of the states
        #[arg(long, default_value_t = 100)]
        life_every: u64,
        /// Every so many operations
        #[arg(long, default_value_t = 1)]
        stride: u64,
    },
    /// Disturbs a daemon that works for hours, and reads what it holds
    Soak {
        #[arg(long, default_value_t = 120.0)]
        minutes: f64,
        /// From one disturbance to the next
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
    },
    /// Says at which boundaries a run could be killed
    List,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// One operation fails with EIO
    Eio,
    /// One operation fails with ENOSPC
    Enospc,
    /// From one operation on there is no room
    Full,
}

pub(crate) fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let binary = match &arguments.binary {
        Some(binary) => binary.canonicalize()?,
        None => std::env::current_exe()?.with_file_name("chandler"),
    };
    let scenario = if arguments.two_files {
        Scenario::two_files(&binary, arguments.steps)?
    } else {
        Scenario::small(&binary, arguments.steps)?
    };
    let folder = tempfile::tempdir()?;
    let oracle = Oracle::ask(&scenario, &folder.path().join("oracle"))?;
    let begun = Instant::now();
    let mut result = match arguments.campaign {
        Campaign::Kills { rounds } => random_kills(&arguments, &scenario, &oracle, rounds)?,
        Campaign::Boundaries { pairs } => boundaries(&arguments, &scenario, &oracle, pairs)?,
        Campaign::IoErrors { kind, stride, from } => {
            failures(&arguments, &scenario, &oracle, kind, (from, stride))?
        }
        Campaign::Signals { stride } => signals(&arguments, &scenario, &oracle, stride)?,
        Campaign::Power { losses, life_every, stride } => {
            let effort = Effort { losses, life_every, stride, disk_lies: false };
            power_losses(&arguments, &scenario, &oracle, effort)?
        }
        Campaign::Soak { minutes, seconds } => {
            let length = Duration::from_secs_f64(60.0 * minutes);
            soak::run(&scenario, Duty { length, every: Duration::from_secs_f64(seconds) })?
        }
        Campaign::List => {
            for boundary in all_boundaries(&scenario, folder.path())? {
                eprintln!("{} #{}", boundary.label, boundary.occurrence);
            }
            json!({})
        }
    };
    result["seconds"] = json!(begun.elapsed().as_secs());
    print(&result)
}

fn print(result: &Value) -> Result<()> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{result}")?)
}

/// Errors after which a campaign ends early.
const ENOUGH_ERRORS: u64 = 10;

/// Runs `work` for 0, 1, 2, … below `count` on so many threads; errors are told as they come.
fn share(jobs: u64, count: u64, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    let errors = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= count {
                        return;
                    }
                    if let Err(found) = work(number) {
                        eprintln!("FAILED: {found:#}");
                        if errors.fetch_add(1, Ordering::SeqCst) + 1 >= ENOUGH_ERRORS {
                            next.store(count, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let errors = errors.into_inner();
    ensure!(errors == 0, "{errors} failed");
    Ok(())
}

fn random_kills(
    arguments: &Arguments,
    scenario: &Scenario,
    oracle: &Oracle,
    rounds: u64,
) -> Result<Value> {
    const PORTION: u64 = 50;
    let total = Mutex::new(kills::Tally::default());
    share(arguments.jobs, rounds.div_ceil(PORTION), |number| {
        let seed = arguments.seed * 1_000_003 + number;
        let tally = kills::at_random(scenario, oracle, PORTION.min(rounds), seed)?;
        if let Ok(mut total) = total.lock() {
            add(&mut total, tally);
            eprintln!("{} kills, {} finished", total.kills, total.finished);
        }
        Ok(())
    })?;
    Ok(json!({ "campaign": "kills", "tally": total.into_inner().ok() }))
}

fn add(total: &mut kills::Tally, tally: kills::Tally) {
    total.kills += tally.kills;
    total.finished += tally.finished;
    total.longest_life_ms = total.longest_life_ms.max(tally.longest_life_ms);
    total.most_steps_again = total.most_steps_again.max(tally.most_steps_again);
}

fn all_boundaries(scenario: &Scenario, folder: &Path) -> Result<Vec<Boundary>> {
    let state = folder.canonicalize()?.join("listed");
    scenario.prepare(&state)?;
    kills::boundaries(scenario, &state)
}

fn boundaries(
    arguments: &Arguments,
    scenario: &Scenario,
    oracle: &Oracle,
    pairs: bool,
) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let all = all_boundaries(scenario, folder.path())?;
    let total = Mutex::new(kills::Tally::default());
    share(arguments.jobs, all.len() as u64, |number| {
        let mut tally = kills::Tally::default();
        let mut choose = |second| if pairs { second } else { Vec::new() };
        let first = &all[number as usize];
        kills::at_boundary(scenario, oracle, first, &mut choose, &mut tally)?;
        if let Ok(mut total) = total.lock() {
            add(&mut total, tally);
            eprintln!("{} of {}: {} kills", number + 1, all.len(), total.kills);
        }
        Ok(())
    })?;
    let tally = total.into_inner().ok();
    Ok(json!({ "campaign": "boundaries", "pairs": pairs, "boundaries": all.len(), "tally": tally }))
}

fn failures(
    arguments: &Arguments,
    scenario: &Scenario,
    oracle: &Oracle,
    kind: Kind,
    (from, stride): (u64, u64),
) -> Result<Value> {
    const FAR_MORE_THAN_THERE_ARE: u64 = 1_000_000;
    let failing = match kind {
        Kind::Eio => Failing::Once(libc::EIO),
        Kind::Enospc => Failing::Once(libc::ENOSPC),
        Kind::Full => Failing::Full,
    };
    let (tried, survived, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let reached_end = AtomicU64::new(u64::MAX);
    share(arguments.jobs, FAR_MORE_THAN_THERE_ARE, |number| {
        let at = from + number * stride;
        if at >= reached_end.load(Ordering::SeqCst) {
            return Ok(());
        }
        match io_errors::at(scenario, oracle, failing, at)? {
            Outcome::NotReached => {
                reached_end.fetch_min(at, Ordering::SeqCst);
                return Ok(());
            }
            Outcome::Survived => survived.fetch_add(1, Ordering::SeqCst),
            Outcome::Ended(_) => ended.fetch_add(1, Ordering::SeqCst),
        };
        let tried = tried.fetch_add(1, Ordering::SeqCst) + 1;
        if tried.is_multiple_of(100) {
            eprintln!("{tried} operations failed, the newest is {at}");
        }
        Ok(())
    })?;
    let figure = |count: AtomicU64| count.into_inner();
    Ok(json!({
        "campaign": "io-errors", "kind": format!("{kind:?}"), "operations": figure(tried),
        "survived": figure(survived), "ended_with_a_message": figure(ended),
    }))
}

fn signals(
    arguments: &Arguments,
    scenario: &Scenario,
    oracle: &Oracle,
    stride: u64,
) -> Result<Value> {
    const FAR_MORE_THAN_THERE_ARE: u64 = 1_000_000;
    let sent = AtomicU64::new(0);
    let reached_end = AtomicU64::new(u64::MAX);
    share(arguments.jobs, FAR_MORE_THAN_THERE_ARE, |number| {
        let at = 1 + number * stride;
        if at >= reached_end.load(Ordering::SeqCst) {
            return Ok(());
        }
        let signal = if number.is_multiple_of(2) { libc::SIGTERM } else { libc::SIGINT };
        if kills::at_signal(scenario, oracle, signal, at)? {
            sent.fetch_add(1, Ordering::SeqCst);
        } else {
            reached_end.fetch_min(at, Ordering::SeqCst);
        }
        Ok(())
    })?;
    Ok(json!({ "campaign": "signals", "sent": sent.into_inner() }))
}

fn power_losses(
    arguments: &Arguments,
    scenario: &Scenario,
    oracle: &Oracle,
    effort: Effort,
) -> Result<Value> {
    let mut last = Instant::now();
    let mut progress = |tally: &power::Tally| {
        if last.elapsed().as_secs() >= 10 {
            last = Instant::now();
            eprintln!(
                "{} operations, {} states, {} lives",
                tally.operations, tally.states, tally.lives
            );
        }
    };
    let tally = power::campaign(scenario, oracle, effort, arguments.seed, &mut progress)
        .context("the power went")?;
    Ok(json!({ "campaign": "power", "tally": tally }))
}
