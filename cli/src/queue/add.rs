//! `chandler add`: a copy of a file into the inbox and the queue.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, RealFs};

use super::error::QueueError;
use super::inbox::Refusal;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{Job, NewJob, Store};

/// Copies `source` into the inbox and queues it; the original stays where it is.
///
/// The copy appears under its name only when it is whole, so that nothing has to wait for it to lie
/// still.
pub fn add_file(
    state: &StateDir,
    store: &Store,
    source: &Path,
    priority: Priority,
) -> Result<Job, QueueError> {
    let read = |error| QueueError::Read { path: source.to_owned(), source: error };
    let metadata = source.symlink_metadata().map_err(read)?;
    let refused = |refusal| QueueError::Refused { path: source.to_owned(), refusal };
    if let Some(refusal) = Refusal::of(&metadata) {
        return Err(refused(refusal));
    }
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| refused(Refusal::Name))?
        .trim_start_matches('.');
    let mut input = File::open(source).map_err(read)?;
    let destination = free_name(&state.inbox(priority), name);
    let size_bytes =
        durable::write_with(&RealFs, &destination, |output| io::copy(&mut input, output))?;
    let file_name =
        destination.file_name().and_then(|name| name.to_str()).unwrap_or(name).to_owned();
    Ok(store.enqueue(&NewJob {
        file_name: &file_name,
        path: &destination,
        size_bytes,
        priority,
    })?)
}

/// `name` in `folder`, or the first of `name-2`, `name-3`, … that is free.
pub(super) fn free_name(folder: &Path, name: &str) -> PathBuf {
    let (stem, extension) = match name.split_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    std::iter::once(folder.join(name))
        .chain((2..=u64::MAX).map(|number| folder.join(format!("{stem}-{number}{extension}"))))
        .find(|path| {
            // A name that cannot be looked at may be in use.
            path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
        .unwrap_or_else(|| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str| durable::write(&folder.path().join(name), b"").unwrap();
        assert_eq!(free_name(folder.path(), "a.jsonl"), folder.path().join("a.jsonl"));
        put("a.jsonl");
        put("a-2.jsonl");
        assert_eq!(free_name(folder.path(), "a.jsonl"), folder.path().join("a-3.jsonl"));
        put("plain");
        assert_eq!(free_name(folder.path(), "plain"), folder.path().join("plain-2"));
    }
}
