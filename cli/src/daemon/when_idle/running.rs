//! One run of the program: its process group, its time and what it says.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::super::controls::Controls;
use super::super::stop::StopReason;
use crate::visible::visible_line;

/// How often it is looked whether it is over, or to be ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long it has between the signal that asks and the one that does not.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Of what it says, so many lines of so many characters are logged in one run.
const LINES: usize = 100;
const LINE_CHARS: usize = 300;

/// How it ended: well, or in words why not.
type Ending = Result<(), String>;

/// The program at work; dropping it ends it.
pub(super) struct Running {
    pub(super) ending: Receiver<Ending>,
    thread: Option<JoinHandle<()>>,
    /// Dropped to have the program ended.
    wanted: Option<mpsc::Sender<()>>,
}

impl Running {
    /// Runs `command`, for `limit` at most; `None` while a process of an earlier run is left, which a
    /// daemon that was killed could not end. Such a one holds `lock`, an empty file that is its input.
    pub(super) fn start(
        mut command: Command,
        lock: &Path,
        limit: Duration,
        controls: &Controls,
    ) -> io::Result<Option<Self>> {
        let Some(input) = lock_alone(lock)? else { return Ok(None) };
        let (mut output, writer) = io::pipe()?;
        let child = command
            .process_group(0)
            .stdin(input)
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        // Else this process would hold the pipe's other end open.
        drop(command);
        std::thread::spawn(move || log_lines(&mut output));
        let (wanted, unwanted) = mpsc::channel();
        let (sender, ending) = mpsc::channel();
        let controls = controls.clone();
        let thread = std::thread::spawn(move || {
            let ended = watch(child, limit, &controls, &unwanted);
            // A daemon that is gone does not ask any more.
            let _ = sender.send(ended);
            controls.wake();
        });
        Ok(Some(Self { ending, thread: Some(thread), wanted: Some(wanted) }))
    }
}

impl Drop for Running {
    /// Ends the program with everything that it started.
    fn drop(&mut self) {
        drop(self.wanted.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The file at `path`, locked for as long as anybody has it open from here; `None` where somebody has.
fn lock_alone(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the end of the program, which is brought about where it is due.
fn watch(mut child: Child, limit: Duration, controls: &Controls, wanted: &Receiver<()>) -> Ending {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return ending_of(status),
            Ok(None) => {}
            Err(error) => return Err(format!("cannot be waited for: {error}")),
        }
        let is_unwanted = controls.stop().requested() == Some(StopReason::Shutdown)
            || wanted.try_recv() == Err(TryRecvError::Disconnected);
        if is_unwanted || begun.elapsed() > limit {
            end(&mut child);
            let words = format!("was ended: it ran for more than {} s", limit.as_secs_f64());
            return if is_unwanted { Ok(()) } else { Err(words) };
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Asks the group to end, and after a while does not ask.
fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    // Who has ended already needs no signal.
    let _ = kill_process_group(group, Signal::TERM);
    let until = Instant::now() + LAST_WORDS;
    while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(LOOK_EVERY);
    }
    // Children of its own may be left where it itself has ended.
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}

fn ending_of(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("ended with code {code}")),
        (None, Some(signal)) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            Err(format!("was killed by {name}"))
        }
        (None, None) => Err("ended without a word".to_owned()),
    }
}

/// Logs the first lines of what the program says, and hears the rest.
fn log_lines(output: &mut impl Read) {
    let (mut line, mut lines) = (Vec::new(), 0);
    let mut buffer = [0; 4096];
    let mut log = |line: &mut Vec<u8>| {
        lines += 1;
        match lines {
            0..=LINES => {
                let text = String::from_utf8_lossy(line);
                let text: String = text.trim_end().chars().take(LINE_CHARS).collect();
                tracing::info!("when_idle: {}", visible_line(&text));
            }
            _ if lines == LINES + 1 => tracing::info!("when_idle: the rest is not logged"),
            _ => {}
        }
        line.clear();
    };
    while let Ok(length @ 1..) = output.read(&mut buffer) {
        for byte in &buffer[..length] {
            match byte {
                b'\n' => log(&mut line),
                _ if line.len() < 4 * LINE_CHARS => line.push(*byte),
                _ => {}
            }
        }
    }
    if !line.is_empty() {
        log(&mut line);
    }
}
