//! Obstacles that may go away by themselves: a full disk, a disk that does not answer.
//!
//! A daemon that meets one neither ends nor blames the file: it waits, says for what, and goes on.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::{Duration, Instant};

use chandler_durable::{DurableError, free_space};

use super::controls::Controls;
use super::job_loop::DaemonError;
use crate::exit::Exit;

/// Room that must have come free before it is worth another try, where nobody said how much is
/// needed.
const WORTH_A_TRY_BYTES: u64 = 64 << 20;
/// The first wait before a try, and the longest.
const SHORTEST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// How often it is looked whether room has come free.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The disk or the quota is full.
    NoRoom {
        /// Bytes that must be free, where that is known.
        needed_bytes: Option<u64>,
    },
    /// Reading or writing failed.
    NoAnswer,
}

impl Obstacle {
    /// What stands in the way, if it is something that may pass.
    pub(super) fn of(error: &DaemonError) -> Option<Self> {
        let causes = || chain(error);
        let needed_bytes = causes().find_map(|cause| match cause.downcast_ref() {
            Some(DurableError::NotEnoughSpace { needed_bytes, .. }) => Some(*needed_bytes),
            _ => None,
        });
        if needed_bytes.is_some() || error.exit() == Exit::NoSpace || is_full(error) {
            return Some(Self::NoRoom { needed_bytes });
        }
        causes().any(is_unanswered).then_some(Self::NoAnswer)
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
}

/// Whether an error or one of its causes is that the disk or the quota is full.
pub(crate) fn is_full(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| {
        let file = cause
            .downcast_ref()
            .map(io::Error::kind)
            .is_some_and(|kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
        let database = cause
            .downcast_ref()
            .and_then(rusqlite::Error::sqlite_error_code)
            .is_some_and(|code| code == rusqlite::ErrorCode::DiskFull);
        let known = cause.downcast_ref().is_some_and(DurableError::is_out_of_space);
        file || database || known
    })
}

/// Whether the operating system or the database could not read or write, through no fault of a
/// name or a permission.
fn is_unanswered(cause: &(dyn Error + 'static)) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, SystemIoFailure};
    let file = cause.downcast_ref().is_some_and(|error: &io::Error| {
        let passes = [rustix::io::Errno::IO, rustix::io::Errno::STALE, rustix::io::Errno::TIMEDOUT];
        passes.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    });
    let database = cause
        .downcast_ref()
        .and_then(rusqlite::Error::sqlite_error_code)
        .is_some_and(|code| matches!(code, SystemIoFailure | DatabaseBusy | DatabaseLocked));
    file || database
}

/// Waits, longer from time to time.
#[derive(Debug, Default)]
pub(super) struct Patience {
    tries: u32,
    last: Option<Instant>,
}

impl Patience {
    /// Returns when the obstacle is worth another try, or an end is asked for.
    pub(super) fn wait(&mut self, obstacle: Obstacle, at: &Path, controls: &Controls) {
        let free_before = free_space(at).unwrap_or(0);
        let until = Instant::now() + self.next_wait();
        while !controls.stop().is_requested() && Instant::now() < until {
            let free = free_space(at).unwrap_or(0);
            let there_is_room = match obstacle {
                Obstacle::NoRoom { needed_bytes: Some(needed) } => free >= needed,
                Obstacle::NoRoom { needed_bytes: None } => free >= free_before + WORTH_A_TRY_BYTES,
                Obstacle::NoAnswer => false,
            };
            if there_is_room {
                return;
            }
            controls.sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
    }

    /// Twice as long as the time before, unless that was long ago.
    fn next_wait(&mut self) -> Duration {
        if self.last.is_some_and(|last| last.elapsed() > 3 * LONGEST_WAIT) {
            self.tries = 0;
        }
        self.last = Some(Instant::now());
        let wait = SHORTEST_WAIT * 2_u32.saturating_pow(self.tries.min(10));
        self.tries += 1;
        wait.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    fn of(source: rusqlite::Error) -> Option<Obstacle> {
        Obstacle::of(&DaemonError::Store(StoreError::Query { operation: "record", source }))
    }

    fn sqlite(code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None)
    }

    #[test]
    fn what_may_pass_is_told_from_what_stays() {
        let no_room = Obstacle::NoRoom { needed_bytes: None };
        assert_eq!(of(sqlite(rusqlite::ffi::SQLITE_FULL)), Some(no_room));
        assert_eq!(of(sqlite(rusqlite::ffi::SQLITE_IOERR_FSYNC)), Some(Obstacle::NoAnswer));
        assert_eq!(of(sqlite(rusqlite::ffi::SQLITE_CORRUPT)), None);
        let durable = |source: DurableError| {
            Obstacle::of(&DaemonError::Queue(crate::queue::QueueError::Durable { source }))
        };
        let io = |errno: rustix::io::Errno| DurableError::Io {
            operation: chandler_durable::Operation::Write,
            path: "x".into(),
            source: errno.into(),
        };
        assert_eq!(durable(io(rustix::io::Errno::NOSPC)), Some(no_room));
        assert_eq!(durable(io(rustix::io::Errno::IO)), Some(Obstacle::NoAnswer));
        assert_eq!(durable(io(rustix::io::Errno::ACCESS)), None);
    }

    #[test]
    fn waits_grow_up_to_a_bound_and_a_stop_ends_them() {
        let mut patience = Patience::default();
        let waits: Vec<_> = (0..9).map(|_| patience.next_wait().as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        let controls = Controls::default();
        controls.request_stop(crate::daemon::StopReason::Shutdown);
        let begun = Instant::now();
        patience.wait(Obstacle::NoAnswer, Path::new("/"), &controls);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
