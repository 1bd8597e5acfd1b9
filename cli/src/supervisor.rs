//! The daemon's parent: it starts the daemon, and starts it again when it was killed, when it
//! crashed, and when nothing has moved in it for too long.
//!
//! The daemon does everything else, the lock included, so that this process has nothing in it that
//! could fail. Whatever the daemon writes to its standard output is a sign of life; a line that is
//! not empty is for the service manager, who listens to this process alone.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::daemon::ALIVE;
use crate::exit::Exit;
use crate::signals::WITHOUT_MEANING;

/// The wait before the daemon is started again, and the longest, for one that ends at once.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Who lived so long did not end at once.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// The assignments that are passed on to the service manager, by what they begin with.
const PASSED_ON: [&str; 3] = ["READY=1", "STOPPING=1", "STATUS="];
/// Of a line that the daemon writes.
const MOST_LINE_BYTES: u64 = 4096;

/// What a supervisor hears.
enum News {
    /// The daemon of this life is alive, and may have said something.
    Beat(u64, String),
    /// Its standard output was closed: it is over, or about to be.
    Silence(u64),
    /// Somebody asked for an end.
    Asked(i32),
}

/// How a life of the daemon ended.
enum Ending {
    /// By its own decision.
    Exit(u8),
    /// In a way that another life may not.
    Cut(String),
}

/// Starts daemons until one ends by its own decision, and returns its code.
///
/// `command` is given the words of the last crash, if there was one, and makes the command that
/// starts the daemon. `tell` is told of each crash, `manager` what the daemon has to say to the
/// service manager and that it is alive. A daemon that gives no sign of life for `hang` is killed;
/// `None` waits for ever.
pub fn supervise(
    command: &mut dyn FnMut(Option<&str>) -> Command,
    tell: &mut dyn FnMut(&str),
    manager: &dyn Fn(&str),
    hang: Option<Duration>,
) -> io::Result<u8> {
    let (sender, news) = mpsc::channel();
    let heard = [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().chain(WITHOUT_MEANING);
    let mut signals = Signals::new(heard)?;
    let asked = sender.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever().filter(|signal| !WITHOUT_MEANING.contains(signal)) {
            if asked.send(News::Asked(signal)).is_err() {
                return;
            }
        }
    })?;
    let mut wait = SHORTEST_WAIT;
    let mut crash: Option<String> = None;
    let mut number = 0;
    loop {
        let begun = Instant::now();
        let life = Life::begin(&mut command(crash.as_deref()), number, sender.clone())?;
        let words = match life.watch(&news, manager, hang)? {
            (Ending::Exit(code), _) => return Ok(code),
            // It was asked to end before it had learned to listen.
            (Ending::Cut(_), true) => return Ok(Exit::Ok.code()),
            (Ending::Cut(words), false) => words,
        };
        wait = if begun.elapsed() > LONG_LIFE { SHORTEST_WAIT } else { wait };
        tell(&format!("{words}; it is started again in {} s", wait.as_secs()));
        if is_asked_to_end(&news, wait) {
            return Ok(Exit::Ok.code());
        }
        wait = (wait * 2).min(LONGEST_WAIT);
        crash = Some(words);
        number += 1;
    }
}

/// Whether an end is asked for within `wait`.
fn is_asked_to_end(news: &Receiver<News>, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        match news.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(News::Asked(_)) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// A daemon at work.
struct Life {
    child: Child,
    /// What is still heard of an earlier life is none of this one's business.
    number: u64,
}

impl Life {
    fn begin(command: &mut Command, number: u64, sender: mpsc::Sender<News>) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        if let Some(output) = child.stdout.take() {
            std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
                let mut output = BufReader::new(output);
                while let Some(line) = next_line(&mut output) {
                    if sender.send(News::Beat(number, line)).is_err() {
                        break;
                    }
                }
                let _ = sender.send(News::Silence(number));
            })?;
        }
        Ok(Self { child, number })
    }

    /// Waits for the end; whether it was asked for.
    fn watch(
        mut self,
        news: &Receiver<News>,
        manager: &dyn Fn(&str),
        hang: Option<Duration>,
    ) -> io::Result<(Ending, bool)> {
        let (mut asked, mut beaten) = (false, Instant::now());
        loop {
            let patience =
                hang.map(|hang| (beaten + hang).saturating_duration_since(Instant::now()));
            match news.recv_timeout(patience.unwrap_or(LONGEST_WAIT)) {
                Ok(News::Beat(life, line)) if life == self.number => {
                    beaten = Instant::now();
                    manager(ALIVE);
                    if PASSED_ON.iter().any(|word| line.starts_with(word)) {
                        manager(&line);
                    }
                }
                Ok(News::Silence(life)) if life == self.number => {
                    let status = self.child.wait()?;
                    return Ok((ending_of(status), asked));
                }
                Ok(News::Asked(signal)) => {
                    asked = true;
                    self.pass_on(signal);
                }
                Err(RecvTimeoutError::Timeout) if hang.is_some() => {
                    let words = format!(
                        "the daemon (pid {}) gave no sign of life for {} s and was killed",
                        self.child.id(),
                        beaten.elapsed().as_secs()
                    );
                    self.child.kill()?;
                    self.child.wait()?;
                    return Ok((Ending::Cut(words), asked));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// The daemon is in a process group of its own, so that it hears each signal of a terminal once. What
    /// would have it dump its memory asks it to end.
    fn pass_on(&self, signal: i32) {
        let named = Signal::from_named_raw(signal).filter(|named| *named != Signal::QUIT);
        let signal = named.unwrap_or(Signal::TERM);
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may be over already, which is what was asked for.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The next line without its end; nothing where there will be none.
fn next_line(output: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let read = output.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line);
    let is_there = read.is_ok_and(|length| length > 0);
    is_there.then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn ending_of(status: ExitStatus) -> Ending {
    use std::os::unix::process::ExitStatusExt;
    /// What Rust ends with after a panic of the main thread.
    const PANICKED: i32 = 101;
    match (status.code(), status.signal()) {
        (Some(PANICKED), _) => Ending::Cut("the daemon panicked".to_owned()),
        (Some(code), _) if code == i32::from(Exit::GpuLost.code()) => {
            Ending::Cut("the GPU took no more work from the daemon".to_owned())
        }
        (Some(code), _) => Ending::Exit(code as u8),
        (None, Some(signal)) => {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            let hint =
                if name == "SIGKILL" { " (`dmesg` says whether memory ran out)" } else { "" };
            Ending::Cut(format!("the daemon was killed by {name}{hint}"))
        }
        (None, None) => Ending::Cut("the daemon ended without a word".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Supervises shell scripts, one for each life.
    fn supervised(scripts: &[&str], hang: Option<Duration>) -> (u8, Vec<String>, Vec<String>) {
        let (mut told, mut crashes, mut lives) = (Vec::new(), Vec::new(), scripts.iter());
        let code = supervise(
            &mut |crash| {
                crashes.extend(crash.map(str::to_owned));
                let mut command = Command::new("sh");
                command.args(["-c", lives.next().unwrap()]);
                command
            },
            &mut |words| told.push(words.to_owned()),
            &|_| {},
            hang,
        );
        (code.unwrap(), told, crashes)
    }

    #[test]
    fn a_service_manager_hears_that_it_lives_and_what_it_says() {
        let heard = std::cell::RefCell::new(Vec::new());
        let script = "echo READY=1; echo; echo MAINPID=1; echo STATUS=step 3; exit 5";
        let code = supervise(
            &mut |_| {
                let mut command = Command::new("sh");
                command.args(["-c", &script.replace("step 3", "'step 3'")]);
                command
            },
            &mut |_| {},
            &|words| heard.borrow_mut().push(words.to_owned()),
            None,
        );
        assert_eq!(code.unwrap(), 5);
        let expected = [ALIVE, "READY=1", ALIVE, ALIVE, ALIVE, "STATUS=step 3"];
        assert_eq!(heard.into_inner(), expected, "it does not say who the main process is");
    }

    #[test]
    fn a_crash_is_followed_by_another_life_and_an_exit_by_none() {
        let (code, told, crashes) = supervised(&["kill -SEGV $$", "exit 6"], None);
        assert_eq!(code, 6);
        assert!(told[0].contains("killed by SIGSEGV") && told[0].contains("in 1 s"), "{told:?}");
        assert_eq!(crashes, ["the daemon was killed by SIGSEGV"]);
        let (code, _, crashes) = supervised(&["exit 9", "exit 0"], None);
        assert_eq!((code, crashes[0].as_str()), (0, "the GPU took no more work from the daemon"));
    }

    #[test]
    fn who_gives_no_sign_of_life_is_killed() {
        let hang = Some(Duration::from_millis(1500));
        let beating = "for i in 1 2 3 4 5 6 7 8; do echo; sleep 0.3; done; exit 3";
        let (code, told, crashes) = supervised(&["echo; sleep 100", beating], hang);
        assert_eq!(code, 3, "signs of life keep it alive: {told:?}");
        assert!(crashes.len() == 1 && crashes[0].contains("no sign of life"), "{crashes:?}");
    }
}
