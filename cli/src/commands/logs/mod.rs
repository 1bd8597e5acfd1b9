//! `chandler logs`: what the daemon has logged, and what it logs from now on.

mod files;
mod follow;
mod line;
mod tail;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use jiff::tz::TimeZone;
use signal_hook::consts::{SIGINT, SIGTERM};

use self::follow::Follower;
use self::line::{Level, LogLine};
use super::App;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::colour_is_wanted;
use crate::output;

/// How often a followed file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Go on with what is logged from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many of the newest lines to print first
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    lines: usize,
    /// Only lines of this level or a worse one
    #[arg(long, value_enum)]
    level: Option<Level>,
}

/// Why the log files could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the logs in {}", path.display())]
struct LogsError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl LogsError {
    fn fails(path: &std::path::Path) -> impl Fn(std::io::Error) -> Failure {
        let path = path.to_owned();
        move |source| {
            let hint = format!("check the owner and mode of {}", path.display());
            Failure::new(Exit::Error, Self { path: path.clone(), source }, Some(hint))
        }
    }
}

/// How lines are chosen and shown.
struct Printer {
    level: Option<Level>,
    json: bool,
    colour: bool,
    zone: TimeZone,
}

impl Printer {
    /// A line without a level that can be read is always wanted: it is shown that it is broken.
    fn wants(&self, line: &LogLine) -> bool {
        let (Some(least), Some(level)) = (self.level, line.level()) else { return true };
        level >= least
    }

    /// Whether somebody still reads.
    fn print(&self, line: &LogLine) -> Result<bool, Failure> {
        if self.json {
            output::print_while_read(&line.as_json())
        } else {
            output::print_while_read(&line.painted(self.colour, &self.zone))
        }
    }
}

pub(super) fn logs(app: &App, args: &LogsArgs) -> Result<Exit, Failure> {
    let folder = app.state()?.logs();
    let colour = colour_is_wanted(std::io::IsTerminal::is_terminal(&std::io::stdout()));
    let printer = Printer { level: args.level, json: app.json, colour, zone: TimeZone::system() };
    let failed = LogsError::fails(&folder);
    let ended = Arc::new(AtomicBool::new(false));
    if args.follow {
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(&failed)?;
        }
    }
    let files = files::list(&folder).map_err(&failed)?;
    if files.is_empty() && !args.follow {
        app.terminal.print(&format!("nothing is logged yet in {}\n", folder.display()));
    }
    let newest = tail::newest(&files, args.lines, args.follow, |line| printer.wants(line));
    let mut read_on = true;
    for place in newest.map_err(&failed)? {
        let line = place.read(&files).map_err(&failed)?;
        read_on = read_on && printer.print(&line)?;
    }
    if !args.follow || !read_on {
        return Ok(Exit::Ok);
    }
    follow(app, &printer, Follower::after(folder.clone(), files).map_err(&failed)?, &ended, &failed)
}

/// Until a signal ends it, or nobody reads any more.
fn follow(
    app: &App,
    printer: &Printer,
    mut follower: Follower,
    ended: &AtomicBool,
    failed: &dyn Fn(std::io::Error) -> Failure,
) -> Result<Exit, Failure> {
    while !ended.load(Ordering::SeqCst) {
        let mut printed = Ok(true);
        let notes = follower.look(&mut |line| {
            if matches!(printed, Ok(true)) && printer.wants(&line) {
                printed = printer.print(&line);
            }
        });
        for note in notes.map_err(failed)? {
            app.terminal.print(&format!("{note}\n"));
        }
        if !printed? {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(Exit::Ok)
}
