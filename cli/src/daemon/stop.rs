//! The wish that a run end, as asked for by a signal or a command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Why a run is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The user passes this job over; the daemon goes on with the next.
    Skip,
    /// The daemon is to end; the job goes on next time.
    Shutdown,
}

const NONE: u8 = 0;
const SKIP: u8 = 1;
const SHUTDOWN: u8 = 2;

/// A flag that a run looks at between steps. Clones are the same flag.
///
/// ```
/// use chandler_cli::daemon::{StopFlag, StopReason};
///
/// let stop = StopFlag::default();
/// assert_eq!(stop.requested(), None);
/// stop.request(StopReason::Shutdown);
/// stop.request(StopReason::Skip);
/// assert_eq!(stop.requested(), Some(StopReason::Shutdown), "the stronger reason stays");
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// Asks for an end; a shutdown is not taken back by a skip.
    pub fn request(&self, reason: StopReason) {
        let value = match reason {
            StopReason::Skip => SKIP,
            StopReason::Shutdown => SHUTDOWN,
        };
        self.0.fetch_max(value, Ordering::SeqCst);
    }

    /// Whether an end is asked for, and why.
    pub fn requested(&self) -> Option<StopReason> {
        match self.0.load(Ordering::SeqCst) {
            NONE => None,
            SKIP => Some(StopReason::Skip),
            _ => Some(StopReason::Shutdown),
        }
    }

    /// Whether an end is asked for.
    pub fn is_requested(&self) -> bool {
        self.requested().is_some()
    }

    /// Forgets a skip, once the job it was meant for is over.
    pub(super) fn forget_skip(&self) {
        // Failure means that there was no skip, which is as wanted.
        let _ = self.0.compare_exchange(SKIP, NONE, Ordering::SeqCst, Ordering::SeqCst);
    }
}
