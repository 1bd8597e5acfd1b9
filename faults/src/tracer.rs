//! Runs a program and decides about each of its calls on the files of one folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::call::{self, Call};
use crate::kernel::{self, Pid, Stop};

/// An error number, such as `libc::EIO`.
pub type Errno = i32;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Go,
    /// It is not made; the program is told that it failed so.
    Fail(Errno),
    /// It is not made; the program and its children are killed with SIGKILL.
    Kill,
    /// It is made, and the program gets this signal.
    Signal(i32),
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Who watches a program.
pub trait Watcher {
    /// A call is about to be made.
    fn before(&mut self, call: &Call) -> Verdict;

    /// A call was made by the thread `pid` and returned `result` (negative: an error number). The
    /// thread waits, so that its descriptors can be looked at.
    fn after(&mut self, _pid: i32, _call: &Call, _result: i64) {}
}

impl<F: FnMut(&Call) -> Verdict> Watcher for F {
    fn before(&mut self, call: &Call) -> Verdict {
        self(call)
    }
}

/// Whether this process may trace another: some sandboxes forbid it.
pub fn can_trace() -> bool {
    run(&mut Command::new("true"), Path::new("/"), &mut |_: &Call| Verdict::Go).is_ok()
}

/// Runs `command` to its end under the eyes of `watcher`.
///
/// Only calls on files below `root`, an absolute path without links in it, are shown. Threads and
/// child processes are watched as well; their calls are counted together.
pub fn run(command: &mut Command, root: &Path, watcher: &mut dyn Watcher) -> io::Result<Ending> {
    kernel::have_traced(command, call::NUMBERS);
    let child = command.spawn()?;
    let main = child.id().cast_signed();
    let mut tracer = Tracer {
        root: root.to_owned(),
        main,
        count: 0,
        threads: BTreeSet::from([main]),
        inside: BTreeMap::new(),
        ending: None,
    };
    kernel::wait(Some(main))?;
    kernel::set_options(main)?;
    kernel::go_on(main, 0, false)?;
    while let Some((pid, stop)) = kernel::wait(None)? {
        tracer.react(pid, stop, watcher)?;
    }
    tracer.ending.ok_or_else(|| io::Error::other("the program was lost sight of"))
}

struct Tracer {
    root: PathBuf,
    main: Pid,
    count: u64,
    /// Threads that were seen.
    threads: BTreeSet<Pid>,
    /// Threads within a call, and what they are to be told: `None` for the truth.
    inside: BTreeMap<Pid, (Call, Option<Errno>)>,
    ending: Option<Ending>,
}

impl Tracer {
    fn react(&mut self, pid: Pid, stop: Stop, watcher: &mut dyn Watcher) -> io::Result<()> {
        match stop {
            Stop::AtCall => self.enter(pid, watcher),
            Stop::AfterCall => self.leave(pid, watcher),
            Stop::Event => kernel::go_on(pid, 0, false),
            Stop::Signal(signal) => {
                // A new thread or child begins with a stop that is none of its business.
                let first = self.threads.insert(pid) && signal == libc::SIGSTOP;
                kernel::go_on(pid, if first { 0 } else { signal }, false)
            }
            Stop::Exited(code) => self.ended(pid, Ending::Code(code)),
            Stop::Killed(signal) => self.ended(pid, Ending::Signal(signal)),
        }
    }

    fn ended(&mut self, pid: Pid, ending: Ending) -> io::Result<()> {
        self.threads.remove(&pid);
        self.inside.remove(&pid);
        if pid == self.main {
            self.ending = Some(ending);
            // Whom it left behind goes with it.
            return kernel::send(-self.main, libc::SIGKILL);
        }
        Ok(())
    }

    fn enter(&mut self, pid: Pid, watcher: &mut dyn Watcher) -> io::Result<()> {
        self.threads.insert(pid);
        let Some(mut registers) = kernel::registers(pid)? else { return Ok(()) };
        let args = [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ];
        let Some(mut call) = call::decode(pid, &self.root, registers.orig_rax as i64, args) else {
            return kernel::go_on(pid, 0, false);
        };
        self.count += 1;
        call.number = self.count;
        let mut lie = None;
        match watcher.before(&call) {
            Verdict::Go => {}
            Verdict::Signal(signal) => kernel::send(self.main, signal)?,
            Verdict::Kill => return kernel::send(-self.main, libc::SIGKILL),
            Verdict::Fail(errno) => {
                // No call has this number, so the kernel makes none.
                registers.orig_rax = u64::MAX;
                kernel::set_registers(pid, &registers)?;
                lie = Some(errno);
            }
        }
        self.inside.insert(pid, (call, lie));
        kernel::go_on(pid, 0, true)
    }

    fn leave(&mut self, pid: Pid, watcher: &mut dyn Watcher) -> io::Result<()> {
        if let Some((call, lie)) = self.inside.remove(&pid) {
            let Some(mut registers) = kernel::registers(pid)? else { return Ok(()) };
            match lie {
                Some(errno) => {
                    registers.rax = i64::from(-errno).cast_unsigned();
                    kernel::set_registers(pid, &registers)?;
                }
                None => watcher.after(pid, &call, registers.rax.cast_signed()),
            }
        }
        kernel::go_on(pid, 0, false)
    }
}
