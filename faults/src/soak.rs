//! A daemon that works for hours and is disturbed all the while, and what it holds in the end.
//!
//! After each disturbance it learns from a file, and when it is idle again its descriptors, threads
//! and resident memory are read, and those of the parent that watches it. Disturbances that it must
//! outlive come by turns; once, half way, it is killed. Of each life the first quarter is for getting
//! warm; the second is held against the last.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::scenario::Scenario;

/// How long anything may take that the daemon is asked for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was opened for a moment is closed by then.
const AT_REST: Duration = Duration::from_secs(2);

/// How long, and how often it is disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Duty {
    /// All in all.
    pub length: Duration,
    /// From one disturbance to the next.
    pub every: Duration,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    descriptors: u64,
    threads: u64,
    resident_kib: u64,
    /// Of these, what is the process's own: the rest are pages of the program's file.
    anonymous_kib: u64,
}

impl Reading {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let figure = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.context("the system does not say")?.parse().context("not a number")
        };
        Ok(Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: figure("Threads:")?,
            resident_kib: figure("VmRSS:")?,
            anonymous_kib: figure("RssAnon:")?,
        })
    }
}

/// What neither the page nor the control socket understands.
const GARBAGE: [&[u8]; 5] = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\0\0\0",
    b"POST /api/stop HTTP/1.1\r\n",
    b"{\"command\": \"no such\"}\n{{{{\n",
    b"",
];

/// Each is outlived.
const DISTURBANCES: [fn(&Soak) -> Result<()>; 9] = [
    |soak| soak.broken_file(),
    |soak| soak.kill_children(),
    |soak| soak.skip(),
    |soak| soak.pause(),
    |soak| soak.garbage(),
    |soak| soak.stand_still(),
    |soak| soak.second_daemon(),
    |soak| soak.odd_files(),
    |soak| soak.evaluate_now(),
];

/// Runs it; what came of it as JSON.
pub fn run(scenario: &Scenario, duty: Duty) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().canonicalize()?.join("state");
    scenario.prepare(&state)?;
    let mut command = scenario.watched_daemon(&state)?;
    let parent = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Soak { scenario, state, parent }.endure(duty)
}

struct Soak<'a> {
    scenario: &'a Scenario,
    state: PathBuf,
    /// The process that starts the daemon anew when it ends.
    parent: Child,
}

impl Soak<'_> {
    fn endure(mut self, duty: Duty) -> Result<Value> {
        let begun = Instant::now();
        let (mut lives, mut parent): (Vec<Vec<Reading>>, _) = (vec![vec![]], vec![]);
        let mut pid = self.until_idle()?;
        for round in 0.. {
            let turn = Instant::now();
            if begun.elapsed() >= duty.length {
                break;
            }
            if lives.len() == 1 && begun.elapsed() >= duty.length / 2 {
                kill(pid, libc::SIGKILL)?;
                lives.push(vec![]);
            } else {
                self.give(&format!("round-{round}.jsonl"))?;
                DISTURBANCES[round % DISTURBANCES.len()](&self)?;
            }
            let now = self.until_idle()?;
            ensure!(now == pid || lives.last().is_some_and(Vec::is_empty), "it ended by itself");
            pid = now;
            sleep(AT_REST);
            let reading = Reading::of(pid)?;
            parent.push(Reading::of(self.parent.id())?);
            eprintln!("{:>5} s: {reading:?}", begun.elapsed().as_secs());
            lives.last_mut().context("a life")?.push(reading);
            sleep(duty.every.saturating_sub(turn.elapsed()));
        }
        let done = self.status()?["counts"]["done"].clone();
        kill(self.parent.id(), libc::SIGTERM)?;
        ensure!(self.parent.wait()?.success(), "it did not end well");
        let lives: Vec<Value> = lives.iter().map(|life| summary(life)).collect();
        Ok(json!({ "campaign": "soak", "done": done, "lives": lives, "parent": summary(&parent) }))
    }

    fn status(&self) -> Result<Value> {
        let dir = self.state.to_str().context("a path that is not Unicode")?;
        let output = self.scenario.command(&["status", "--dir", dir, "--json"]).output()?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let status = self.status()?;
            if is_so(&status) {
                return Ok(status);
            }
            ensure!(begun.elapsed() < PATIENCE, "{what}: {status}");
            sleep(Duration::from_millis(100));
        }
    }

    /// The daemon's process, once nothing waits any more.
    fn until_idle(&self) -> Result<u32> {
        let is_idle = |status: &Value| {
            let inbox = self.state.join("inbox");
            let waits =
                |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "jsonl");
            let is_empty = fs::read_dir(inbox).is_ok_and(|all| !all.flatten().any(waits));
            let nothing = |name: &str| status["counts"][name] == 0;
            let at_rest = status["daemon"]["current"].is_null() && status["daemon"]["pid"].is_u64();
            is_empty && at_rest && nothing("queued") && nothing("running")
        };
        let status = self.until("it does not come to rest", is_idle)?;
        Ok(status["daemon"]["pid"].as_u64().context("a process")? as u32)
    }

    /// Until a job is seen at work, or may have been too quick to be seen.
    fn wait_for_job(&self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until && self.status()?["daemon"]["current"].is_null() {
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn give(&self, name: &str) -> Result<()> {
        let text = fs::read(&self.scenario.data[0])?;
        Ok(chandler_durable::write(&self.state.join("inbox").join(name), &text)?)
    }

    /// Asks the daemon for something; whether it did it.
    fn tell(&self, command: &[&str]) -> Result<bool> {
        let dir = self.state.to_str().context("a path that is not Unicode")?;
        Ok(self.scenario.command(command).args(["--dir", dir]).output()?.status.success())
    }

    /// The same of a job, which may be over by then.
    fn tell_of_job(&self, command: &str) -> Result<()> {
        self.wait_for_job()?;
        let is_done = self.tell(&[command])?;
        let is_over = || Ok::<_, anyhow::Error>(self.status()?["daemon"]["current"].is_null());
        ensure!(is_done || is_over()?, "{command} is refused while a job is at work");
        Ok(())
    }

    fn daemon(&self) -> Result<u32> {
        let is_there = |status: &Value| status["daemon"]["pid"].is_u64();
        let status = self.until("no daemon", is_there)?;
        Ok(status["daemon"]["pid"].as_u64().context("a process")? as u32)
    }

    fn broken_file(&self) -> Result<()> {
        let text = b"{\"text\": \"fine\"}\n{\"text\": \xff\xfe\n[[[[[[[[\n";
        Ok(chandler_durable::write(&self.state.join("inbox/broken.jsonl"), text)?)
    }

    /// Its workers, whichever there are within a second.
    fn kill_children(&self) -> Result<()> {
        let daemon = self.daemon()?;
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let path = format!("/proc/{daemon}/task/{daemon}/children");
            for child in fs::read_to_string(path).unwrap_or_default().split_whitespace() {
                // A worker that has ended meanwhile needs no signal.
                if let Err(gone) = kill(child.parse()?, libc::SIGKILL) {
                    eprintln!("{gone}");
                }
            }
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn skip(&self) -> Result<()> {
        self.tell_of_job("skip")
    }

    fn pause(&self) -> Result<()> {
        ensure!(self.tell(&["pause"])?, "it does not pause");
        sleep(Duration::from_secs(2));
        ensure!(self.tell(&["resume"])?, "it does not go on");
        Ok(())
    }

    fn evaluate_now(&self) -> Result<()> {
        self.tell_of_job("eval-now")
    }

    /// Connections that say nothing, nonsense, or go away in the middle.
    fn garbage(&self) -> Result<()> {
        let status = self.status()?;
        let address = status["daemon"]["http"].as_str().context("the page's address")?;
        let address = address.trim_start_matches("http://");
        let socket = self.control_socket()?;
        // Some are turned away or cut off, which is what is wanted; not all are.
        let (mut to_page, mut to_control) = (0, 0);
        for round in 0..200 {
            let text = GARBAGE[round % GARBAGE.len()];
            let sent = TcpStream::connect(address).and_then(|mut page| page.write_all(text));
            to_page += usize::from(sent.is_ok());
            let sent = UnixStream::connect(&socket).and_then(|mut control| control.write_all(text));
            to_control += usize::from(sent.is_ok());
        }
        ensure!(to_page > 0 && to_control > 0, "heard by page and socket: {to_page}, {to_control}");
        Ok(())
    }

    fn control_socket(&self) -> Result<PathBuf> {
        for entry in fs::read_dir(self.state.join("control"))? {
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                return Ok(entry.path());
            }
        }
        bail!("no socket in control/")
    }

    fn stand_still(&self) -> Result<()> {
        let daemon = self.daemon()?;
        kill(daemon, libc::SIGSTOP)?;
        sleep(Duration::from_secs(3));
        kill(daemon, libc::SIGCONT)
    }

    fn second_daemon(&self) -> Result<()> {
        let dir = self.state.to_str().context("a path that is not Unicode")?;
        let output = self.scenario.command(&["run", "--dir", dir]).output()?;
        ensure!(!output.status.success(), "two daemons at work on one state directory");
        Ok(())
    }

    fn odd_files(&self) -> Result<()> {
        let inbox = self.state.join("inbox");
        // What is refused stays where it lies.
        symlink("/etc/passwd", inbox.join("link.jsonl"))?;
        File::create(inbox.join("empty.jsonl"))?;
        fs::create_dir_all(inbox.join("folder.jsonl"))?;
        sleep(Duration::from_secs(5));
        fs::remove_dir(inbox.join("folder.jsonl"))?;
        Ok(fs::remove_file(inbox.join("link.jsonl"))?)
    }
}

impl Drop for Soak<'_> {
    fn drop(&mut self) {
        // After a failure it is still there.
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

fn kill(pid: u32, signal: i32) -> Result<()> {
    let signal = format!("-{signal}");
    let status = std::process::Command::new("kill")
        .args([&signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "no process {pid}");
    Ok(())
}

/// The medians of the second and the last quarter of a life, and how much there was more, in per cent.
fn summary(life: &[Reading]) -> Value {
    let quarter = life.len().div_ceil(4).max(1);
    let second = life.chunks(quarter).nth(1).unwrap_or(life);
    let last = &life[life.len().saturating_sub(quarter)..];
    let median = |part: &[Reading], of: fn(&Reading) -> u64| {
        let mut figures: Vec<u64> = part.iter().map(of).collect();
        figures.sort_unstable();
        figures.get(figures.len() / 2).copied().unwrap_or(0)
    };
    let both = |of: fn(&Reading) -> u64| {
        let (second, last) = (median(second, of), median(last, of));
        let growth = 100.0 * (last as f64 / second.max(1) as f64 - 1.0);
        let growth = (growth * 100.0).round() / 100.0;
        json!({ "second_quarter": second, "last_quarter": last, "growth_percent": growth })
    };
    json!({
        "readings": life.len(),
        "descriptors": both(|reading| reading.descriptors),
        "threads": both(|reading| reading.threads),
        "resident_kib": both(|reading| reading.resident_kib),
        "anonymous_kib": both(|reading| reading.anonymous_kib),
    })
}
