//! The clock: names of logs and snapshots and the order of what happened depend on it.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};

use super::check::Check;
use crate::state_dir::StateDir;
use crate::store::Store;

/// What the file system may be ahead by.
const ROUNDING: SignedDuration = SignedDuration::from_secs(2);

/// Where systemd's time client says what it has done.
const TIMESYNC: &str = "/run/systemd/timesync";

/// The newest time that the state directory knows of, and of what.
type Newest = Option<(Timestamp, String)>;

pub(super) fn checks(state: &StateDir) -> Vec<Check> {
    let folder = Path::new(TIMESYNC);
    let synchronised = folder.is_dir().then(|| folder.join("synchronized").exists());
    vec![against(Timestamp::now(), newest(state)), synchronisation(synchronised)]
}

/// The newest of the last event and the files of the state directory.
fn newest(state: &StateDir) -> Newest {
    let event = Store::open_to_read(&state.database())
        .and_then(|store| store.recent_events(1))
        .ok()
        .and_then(|events| events.first()?.at.parse().ok());
    let event = event.map(|at: Timestamp| (at, "the newest event".to_owned()));
    let entries = fs::read_dir(state.root()).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let modified: SystemTime = entry.metadata().ok()?.modified().ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((Timestamp::try_from(modified).ok()?, name))
    });
    files.chain(event).max_by_key(|(at, _)| *at)
}

fn against(now: Timestamp, newest: Newest) -> Check {
    const NAME: &str = "clock";
    let Some((newest, what)) = newest else {
        return Check::info(NAME, format!("{now:.0}; nothing here to compare it with"));
    };
    let ahead = newest.duration_since(now);
    if ahead <= ROUNDING {
        return Check::ok(NAME, format!("{now:.0}, after everything in the state directory"));
    }
    Check::problem(
        NAME,
        format!("{now:.0}, but {what} is of {newest:.0}: it was set back, or is wrong"),
        "set it (`timedatectl set-ntp true`), so that logs, snapshots and the queue keep their order",
    )
}

fn synchronisation(synchronised: Option<bool>) -> Check {
    const NAME: &str = "clock sync";
    match synchronised {
        Some(true) => Check::ok(NAME, "synchronised"),
        Some(false) => Check::warning(
            NAME,
            "not synchronised yet",
            "`timedatectl status` says why; snapshots are named by the day",
        ),
        None => Check::info(NAME, "unknown"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_told() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-03-01T12:00:00Z");
        let with = |text| against(now, Some((at(text), "model".to_owned())));
        assert_eq!(with("2026-03-01T12:00:01Z").verdict, Verdict::Ok);
        let back = with("2026-03-01T12:00:03Z");
        assert_eq!(back.verdict, Verdict::Problem);
        assert!(back.detail.contains("model is of 2026-03-01T12:00:03Z"), "{}", back.detail);
        assert_eq!(against(now, None).verdict, Verdict::Info);
        let sync = [Some(true), Some(false), None].map(|known| synchronisation(known).verdict);
        assert_eq!(sync, [Verdict::Ok, Verdict::Warning, Verdict::Info]);
    }

    #[test]
    fn files_are_compared_where_there_is_no_event() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        assert_eq!(newest(&state), None);
        state.init("").unwrap();
        assert!(newest(&state).is_some());
        assert_eq!(checks(&state)[0].verdict, Verdict::Ok);
    }
}
