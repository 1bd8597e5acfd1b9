//! When to try again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};

use crate::store::LONGEST_WAIT_MS;

/// The wait after the first failure, which doubles with each that follows.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait of our own choosing.
const LONGEST: Duration = Duration::from_secs(3600);
/// The longest that a receiver may ask for.
const LONGEST_ASKED: Duration = Duration::from_millis(LONGEST_WAIT_MS as u64);

/// How long to wait after failure number `failures`, from 1: between half and all of 1 s, 2 s, 4 s
/// and so on. `key` decides where in between, so that many who failed together do not come back
/// together.
pub(super) fn wait_after(failures: u32, key: &str) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
    let whole = FIRST.saturating_mul(doubled).min(LONGEST);
    let digest = Sha256::new().chain_update(key).chain_update(failures.to_le_bytes()).finalize();
    let share = f64::from(digest[0]) / 255.0;
    whole.mul_f64(0.5 + 0.5 * share)
}

/// What a `Retry-After` header asks for (RFC 9110, section 10.2.3): seconds, or a date.
pub(super) fn asked_wait(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    let asked = match header.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(header).ok()?.timestamp();
            Duration::try_from(at.duration_since(now).max(SignedDuration::ZERO)).ok()?
        }
    };
    Some(asked.min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_an_hour_and_differ() {
        for failures in 1..=40 {
            let whole = 2_f64.powi(failures - 1).min(3600.0);
            let wait = wait_after(failures as u32, "a").as_secs_f64();
            assert!(wait >= whole / 2.0 && wait <= whole, "{failures}: {wait}");
        }
        assert_ne!(wait_after(5, "a"), wait_after(5, "b"));
        assert_eq!(wait_after(5, "a"), wait_after(5, "a"));
    }

    #[test]
    fn what_a_receiver_asks_for_is_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:28:00Z".parse().unwrap();
        let asked = |header| asked_wait(header, now).map(|wait| wait.as_secs());
        assert_eq!(asked("120"), Some(120));
        assert_eq!(asked(" 0 "), Some(0));
        assert_eq!(asked("Wed, 21 Oct 2015 07:29:30 GMT"), Some(90));
        assert_eq!(asked("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0));
        assert_eq!(asked("999999999"), Some(24 * 3600));
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-3"), None);
    }
}
