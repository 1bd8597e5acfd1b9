//! Processes that are forked for a race: as real as those that are started, and there sooner.
#![expect(unsafe_code, reason = "nothing else forks without exec")]

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Pid, WaitOptions, waitpid};

/// What a contestant has to do with others: it waits until the gate closes, which every copy of its
/// writing end keeps open, and says how it fares.
pub(crate) struct Course {
    pub(crate) gate: PipeReader,
    pub(crate) keeper: PipeWriter,
    pub(crate) out: PipeWriter,
}

/// A child of this process.
pub(crate) struct Contestant(Pid);

impl Contestant {
    /// Forks a process that does `task` with the gate as its input and ends.
    pub(crate) fn start(course: &Course, task: impl FnOnce() -> bool) -> io::Result<Self> {
        // SAFETY: this process has one thread, so the child may do whatever its parent may. It
        // never returns from here.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let done =
                    take_part(course) && catch_unwind(AssertUnwindSafe(task)).unwrap_or(false);
                // SAFETY: it ends the process, without what the parent wants done at its end.
                unsafe { libc::_exit(i32::from(!done)) }
            }
            pid => Ok(Self(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?)),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.0, rustix::process::Signal::KILL)?)
    }

    /// Waits for its end, and whether it went as it should.
    pub(crate) fn wait(self) -> io::Result<bool> {
        let ended = waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)))
    }
}

/// In the child: puts the pipes in place of its input and output, and lets go of the gate's end.
fn take_part(course: &Course) -> bool {
    let copied = rustix::stdio::dup2_stdin(&course.gate)
        .and_then(|()| rustix::stdio::dup2_stdout(&course.out));
    // SAFETY: the child's copy of the descriptor; `course` is not dropped in the child.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(course.keeper.as_raw_fd()) });
    copied.is_ok()
}
