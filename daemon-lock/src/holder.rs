//! Who holds a lock, as told to those who come second.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::process::start_ticks;

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line.
    pub command_line: String,
    /// When it took the lock, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// GPU memory that it uses, in bytes, where it has said so.
    pub vram_bytes: Option<u64>,
    /// When it began, in clock ticks since the machine did: a later process may have its pid, but
    /// not both. `None` where it could not tell.
    #[serde(default)]
    pub start_ticks: Option<u64>,
}

impl Holder {
    /// The calling process, now.
    pub fn this_process() -> Self {
        let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            pid: std::process::id(),
            command_line: words.collect::<Vec<_>>().join(" "),
            since_unix_seconds: now.as_secs(),
            vram_bytes: None,
            start_ticks: start_ticks(std::process::id()),
        }
    }

    /// Whether this very process still runs. The text of a lock outlives a process that was killed,
    /// and its pid may by now be another's.
    pub fn is_running(&self) -> bool {
        let found = start_ticks(self.pid);
        found.is_some() && (self.start_ticks.is_none() || self.start_ticks == found)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { pid, command_line, since_unix_seconds, vram_bytes, .. } = self;
        write!(f, "pid {pid}, `{command_line}`, since {}", UtcTime(*since_unix_seconds))?;
        match vram_bytes {
            Some(bytes) => write!(f, ", {:.2} GiB of VRAM", *bytes as f64 / f64::from(1 << 30)),
            None => Ok(()),
        }
    }
}

/// Seconds since 1970 as `2026-11-24 12:30:05 UTC`.
struct UtcTime(u64);

impl fmt::Display for UtcTime {
    /// Days to a date by Hinnant's `civil_from_days`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_764_000_000, "2025-11-24 16:00:00 UTC"),
            (4_102_444_799, "2099-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(UtcTime(seconds).to_string(), expected);
        }
    }

    #[test]
    fn a_holder_says_everything_it_knows() {
        let mut holder = Holder {
            pid: 7,
            command_line: "chandler run".to_owned(),
            since_unix_seconds: 0,
            vram_bytes: None,
            start_ticks: None,
        };
        assert_eq!(holder.to_string(), "pid 7, `chandler run`, since 1970-01-01 00:00:00 UTC");
        holder.vram_bytes = Some(13 << 29);
        assert!(holder.to_string().ends_with(", 6.50 GiB of VRAM"));
    }

    #[test]
    fn a_pid_that_is_anothers_by_now_is_not_the_holder() {
        let this = Holder::this_process();
        assert!(this.is_running());
        let started = this.start_ticks.map(|ticks| ticks - 1);
        assert!(!Holder { start_ticks: started, ..this.clone() }.is_running(), "its pid is reused");
        assert!(!Holder { pid: u32::MAX, ..this.clone() }.is_running());
        // As written by a version that did not tell when it began.
        let old = r#"{"pid":1,"command_line":"x","since_unix_seconds":0,"vram_bytes":null}"#;
        assert!(serde_json::from_str::<Holder>(old).unwrap().is_running());
    }

    #[test]
    fn a_clock_that_jumps_changes_nothing() {
        for since_unix_seconds in [0, u64::from(u32::MAX) * 4] {
            let holder = Holder { since_unix_seconds, ..Holder::this_process() };
            assert!(holder.is_running(), "{holder}");
        }
    }
}
