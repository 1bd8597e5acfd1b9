//! The time by which what is old is deleted: one that a clock which jumps ahead does not hurry.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// The newest moment that the database knew when the daemon began, and how long that has run since.
/// So the time that no daemon ran does not count, and what is kept is rather kept too long.
#[derive(Debug)]
pub struct SteadyClock {
    newest: Option<Timestamp>,
    began: Instant,
}

impl SteadyClock {
    /// Begins after what was recorded last; `None` where nothing was.
    pub fn after(newest: Option<Timestamp>) -> Self {
        Self { newest, began: Instant::now() }
    }

    /// What counts as now, where the machine's clock says `wall`.
    pub(super) fn now(&self, wall: Timestamp) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.began.elapsed()).unwrap_or_default();
        let steady = self.newest.and_then(|newest| newest.checked_add(elapsed).ok());
        steady.map_or(wall, |steady| steady.min(wall))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_ahead_does_not_count_and_a_clock_that_was_ahead_is_not_believed() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (newest, ahead) = (at("2026-03-01T10:00:00Z"), at("2099-01-01T00:00:00Z"));
        let clock = SteadyClock::after(Some(newest));
        let now = clock.now(ahead);
        assert!(now >= newest && now.duration_since(newest) < SignedDuration::from_mins(1));
        let before = at("2026-02-01T00:00:00Z");
        assert_eq!(clock.now(before), before);
        assert_eq!(SteadyClock::after(Some(ahead)).now(newest), newest);
        assert_eq!(SteadyClock::after(None).now(newest), newest);
    }
}
