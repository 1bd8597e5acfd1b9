//! The claim: a file leaves the inbox, becomes ours, and an attempt at it begins.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, RealFs};
use sha2::{Digest, Sha256};

use super::error::QueueError;
use super::inbox::Refusal;
use crate::state_dir::StateDir;
use crate::store::{Job, Store};

/// Bytes read at a time while hashing.
const HASH_CHUNK_BYTES: usize = 1 << 20;

/// A job whose file lies in `processing/` and belongs to nobody else.
#[derive(Debug, Clone)]
pub struct ClaimedJob {
    /// The job as the database has it, with its path in `processing/`.
    pub job: Job,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// The run that was begun for this attempt.
    pub run_id: i64,
}

/// Renames a queued job's file into `processing/`, hashes it there and begins an attempt.
///
/// A file that already lies there, because an earlier attempt was interrupted, stays.
pub fn claim(state: &StateDir, store: &Store, job: &Job) -> Result<(Job, String), QueueError> {
    let ours = place_in_processing(state, job);
    if job.path != ours {
        let metadata = match job.path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(QueueError::Vanished { id: job.id, path: job.path.clone() });
            }
            Err(source) => return Err(QueueError::Read { path: job.path.clone(), source }),
        };
        if let Some(refusal) = Refusal::of(&metadata) {
            return Err(QueueError::Refused { path: job.path.clone(), refusal });
        }
        durable::rename_durably(&RealFs, &job.path, &ours)?;
    }
    let sha256 = hash(&ours).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => QueueError::Vanished { id: job.id, path: ours.clone() },
        _ => QueueError::Read { path: ours.clone(), source },
    })?;
    let job = store.begin_attempt(job.id, &ours, &sha256)?;
    Ok((job, sha256))
}

/// Where a job's file lies while it is worked on; the number keeps equal names apart.
pub(super) fn place_in_processing(state: &StateDir, job: &Job) -> PathBuf {
    state.processing().join(format!("{}-{}", job.id, job.file_name))
}

/// The number of the job that a name in `processing/` belongs to.
pub(super) fn job_of_place(path: &Path) -> Option<i64> {
    let (number, _) = path.file_name()?.to_str()?.split_once('-')?;
    number.parse().ok()
}

pub(super) fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        hasher.update(&chunk[..read]);
    }
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        durable::write(&path, b"abc").unwrap();
        assert_eq!(
            hash(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
