//! One copy of the newest model a day, and the folders that go after a job.

use std::path::Path;

use chandler_durable::{RealFs, copy_folder, is_there, remove_folder, rename_durably};

use jiff::civil::Date;

use super::EngineError;
use crate::daemon::snapshot_chores;
use crate::state_dir::StateDir;

/// Makes today's snapshot of the newest model, and removes those beyond the newest `keep`.
pub(super) fn make_snapshot(state: &StateDir, keep: usize) -> Result<(), EngineError> {
    let today = jiff::ZonedDateTime::now().date();
    let chores = snapshot_chores(&names_in(&state.snapshots()), today, keep);
    if let Some(name) = chores.make {
        let place = state.snapshots().join(name);
        let next = place.with_extension("next");
        remove_if_there(&next)?;
        copy_folder(&state.model(), &next)?;
        remove_if_there(&place)?;
        rename_durably(&RealFs, &next, &place)?;
    }
    for name in chores.remove {
        remove_if_there(&state.snapshots().join(name))?;
    }
    Ok(())
}

/// The newest snapshot's name.
pub(super) fn newest_snapshot(state: &StateDir) -> Option<String> {
    let names = names_in(&state.snapshots()).into_iter();
    names.filter_map(|name| Some((name.parse::<Date>().ok()?, name))).max().map(|(_, name)| name)
}

/// The names in a folder; none where it cannot be read.
pub(super) fn names_in(parent: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Bytes of the files in a folder, as far as they can be read.
pub(super) fn bytes_in(folder: &Path) -> u64 {
    let sizes = names_in(folder).into_iter().map(|name| folder.join(name).metadata());
    sizes.flatten().map(|known| known.len()).sum()
}

/// Removes a folder, if there is one.
pub(super) fn remove_if_there(path: &Path) -> Result<(), EngineError> {
    if is_there(path)? { Ok(remove_folder(&RealFs, path)?) } else { Ok(()) }
}
