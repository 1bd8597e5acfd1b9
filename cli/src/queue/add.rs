//! `chandler add`: a copy of a file into the inbox and the queue.

use std::io;
use std::path::Path;

use chandler_durable::{self as durable, RealFs};

use super::error::QueueError;
use super::names::places;
use super::refusal::{Refusal, open_itself, plain_name};
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
    let refused = |refusal| QueueError::Refused { path: source.to_owned(), refusal };
    let mut input = open_itself(source).map_err(|error| match Refusal::of_error(&error) {
        Some(refusal) => refused(refusal),
        None => read(error),
    })?;
    if let Some(refusal) = Refusal::of(&input.metadata().map_err(read)?) {
        return Err(refused(refusal));
    }
    let name = plain_name(source).map(|name| name.trim_start_matches('.'));
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| refused(Refusal::Name))?;
    let inbox = state.inbox(priority);
    let copy = |output: &mut dyn io::Write| io::copy(&mut input, output);
    let (destination, size_bytes) =
        durable::write_to_free_place(&RealFs, &inbox, places(&inbox, name), copy)?;
    let file_name =
        destination.file_name().and_then(|name| name.to_str()).unwrap_or(name).to_owned();
    Ok(store.enqueue(&NewJob {
        file_name: &file_name,
        path: &destination,
        size_bytes,
        priority,
    })?)
}
