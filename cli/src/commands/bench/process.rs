//! What the system knows of this process.

use std::time::Duration;

/// Readings of `/proc/self/stat`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ProcessStat {
    /// Pages that were mapped at their first use.
    pub(super) page_faults: u64,
    /// Time in user mode, all threads.
    pub(super) user_s: f64,
    /// Time in the kernel, all threads.
    pub(super) system_s: f64,
    /// When the process began, after the machine did.
    started_s: f64,
}

impl ProcessStat {
    /// `None` where there is no `/proc`.
    pub(super) fn read() -> Option<Self> {
        let ticks_per_s = rustix::param::clock_ticks_per_second();
        Self::parse(&std::fs::read_to_string("/proc/self/stat").ok()?, ticks_per_s)
    }

    /// The numbers follow the command's name in parentheses, which may hold any character.
    fn parse(text: &str, ticks_per_s: u64) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and the first one here is its third.
        let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
        let seconds = |number| Some(field(number)? as f64 / ticks_per_s as f64);
        Some(Self {
            page_faults: field(10)?,
            user_s: seconds(14)?,
            system_s: seconds(15)?,
            started_s: seconds(22)?,
        })
    }
}

/// How long this process has been there, to the tick in which it began, rounded up.
#[cfg(target_os = "linux")]
pub(super) fn age() -> Option<Duration> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::try_from(now).ok()?;
    now.checked_sub(Duration::try_from_secs_f64(ProcessStat::read()?.started_s).ok()?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn age() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let text = "7 (a) b (c)) S 1 2 3 4 5 6 77 8 9 10 250 50 0 0 20 0 3 0 12345 1 2";
        let stat = ProcessStat::parse(text, 100).unwrap();
        let expected =
            ProcessStat { page_faults: 77, user_s: 2.5, system_s: 0.5, started_s: 123.45 };
        assert_eq!(stat, expected);
        assert_eq!(ProcessStat::parse("7 (a) S 1", 100), None);
    }

    #[test]
    fn this_process_is_older_than_nothing() {
        if std::path::Path::new("/proc/self/stat").exists() {
            let plausible = Duration::from_nanos(1)..Duration::from_secs(86_400);
            assert!(age().is_some_and(|age| plausible.contains(&age)), "{:?}", age());
        }
    }
}
