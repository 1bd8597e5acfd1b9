//! The claim: a file leaves the inbox, becomes ours, and an attempt at it begins.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, RealFs};
use sha2::{Digest, Sha256};

use super::error::QueueError;
use super::names::short_name;
use super::refusal::{Refusal, open_itself};
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

/// On what terms a file is claimed.
pub struct ClaimTerms<'a> {
    /// The most bytes that it may have.
    pub max_bytes: u64,
    /// Whether the claim is no longer wanted.
    pub stop: &'a dyn Fn() -> bool,
}

/// Moves a queued job's file into `processing/`, hashes it there and begins an attempt.
///
/// A file that already lies there, because an earlier attempt was interrupted, stays.
pub fn claim(
    state: &StateDir,
    store: &Store,
    job: &Job,
    terms: &ClaimTerms,
) -> Result<(Job, String), QueueError> {
    let ours = place_in_processing(state, job);
    if job.path != ours {
        take(job, &ours, terms)?;
    }
    let file = open_plain(job, &ours)?;
    let sha256 = hash(file, job, &ours, terms)?;
    let job = store.begin_attempt(job.id, &ours, &sha256)?;
    Ok((job, sha256))
}

/// Takes a file out of the inbox, and makes sure that it is the one that was looked at.
fn take(job: &Job, ours: &Path, terms: &ClaimTerms) -> Result<(), QueueError> {
    let file = open_plain(job, &job.path)?;
    let read = |source| QueueError::Read { path: job.path.clone(), source };
    let metadata = file.metadata().map_err(read)?;
    if metadata.nlink() > 1 {
        return copy(job, file, &metadata, ours, terms);
    }
    durable::rename_durably(&RealFs, &job.path, ours)?;
    let moved = ours.symlink_metadata().map_err(read)?;
    if (moved.dev(), moved.ino()) == (metadata.dev(), metadata.ino()) {
        return Ok(());
    }
    Err(QueueError::Refused { path: ours.to_owned(), refusal: Refusal::Swapped })
}

/// A file with further names could be changed through them, so that it is copied. The name in the
/// inbox goes, the others stay.
fn copy(
    job: &Job,
    file: File,
    metadata: &Metadata,
    ours: &Path,
    terms: &ClaimTerms,
) -> Result<(), QueueError> {
    let bytes = metadata.len();
    if bytes > terms.max_bytes {
        return Err(QueueError::Refused { path: job.path.clone(), refusal: Refusal::TooLarge });
    }
    durable::require_space(&RealFs, ours.parent().unwrap_or(ours), bytes)?;
    tracing::info!(job = job.id, "{} has other names by hard links: it is copied", job.file_name);
    let mut source = UntilStopped { file: file.take(bytes), stop: terms.stop };
    let copied = durable::write_with(&RealFs, ours, |copy| io::copy(&mut source, copy));
    if copied.is_err() && (terms.stop)() {
        return Err(QueueError::Stopped { id: job.id, path: job.path.clone() });
    }
    copied?;
    // What has the name by now, if it is another file, stays and is queued anew.
    let is_the_same = |now: Metadata| (now.dev(), now.ino()) == (metadata.dev(), metadata.ino());
    if !job.path.symlink_metadata().is_ok_and(is_the_same) {
        return Ok(());
    }
    match std::fs::remove_file(&job.path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(QueueError::Remove { path: job.path.clone(), source })
        }
        _ => Ok(()),
    }
}

/// A file that breaks off when the claim is no longer wanted.
struct UntilStopped<'a> {
    file: io::Take<File>,
    stop: &'a dyn Fn() -> bool,
}

impl Read for UntilStopped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.stop)() {
            return Err(io::Error::other("the claim is no longer wanted"));
        }
        self.file.read(buffer)
    }
}

/// Opens a regular file itself, whatever lies under its name by now.
fn open_plain(job: &Job, path: &Path) -> Result<File, QueueError> {
    let refused = |refusal| QueueError::Refused { path: path.to_owned(), refusal };
    let failed = |error: io::Error| match (error.kind(), Refusal::of_error(&error)) {
        (io::ErrorKind::NotFound, _) => QueueError::Vanished { id: job.id, path: path.to_owned() },
        (_, Some(refusal)) => refused(refusal),
        // Such as a socket, which cannot be opened at all.
        _ => match path.symlink_metadata().ok().as_ref().and_then(Refusal::of) {
            Some(refusal) => refused(refusal),
            None => QueueError::Read { path: path.to_owned(), source: error },
        },
    };
    let file = open_itself(path).map_err(failed)?;
    match file.metadata().map(|metadata| Refusal::of(&metadata)) {
        Ok(None) => Ok(file),
        Ok(Some(refusal)) => Err(refused(refusal)),
        Err(error) => Err(failed(error)),
    }
}

/// Where a job's file lies while it is worked on; the number keeps equal names apart.
pub(super) fn place_in_processing(state: &StateDir, job: &Job) -> PathBuf {
    state.processing().join(format!("{}-{}", job.id, short_name(&job.file_name)))
}

/// The number of the job that a name in `processing/` belongs to.
pub(super) fn job_of_place(path: &Path) -> Option<i64> {
    let (number, _) = path.file_name()?.to_str()?.split_once('-')?;
    number.parse().ok()
}

pub(super) fn hash(
    mut file: File,
    job: &Job,
    path: &Path,
    terms: &ClaimTerms,
) -> Result<String, QueueError> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    let mut total = 0;
    loop {
        let read = file
            .read(&mut chunk)
            .map_err(|source| QueueError::Read { path: path.to_owned(), source })?;
        total += read as u64;
        if read == 0 {
            break;
        }
        if total > terms.max_bytes {
            let (path, refusal) = (path.to_owned(), Refusal::TooLarge);
            return Err(QueueError::Refused { path, refusal });
        }
        if (terms.stop)() {
            return Err(QueueError::Stopped { id: job.id, path: path.to_owned() });
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
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::priority::Priority;
    use crate::queue::fixture::{Fixture, fixture};
    use crate::store::NewJob;

    const TERMS: ClaimTerms = ClaimTerms { max_bytes: 1 << 20, stop: &|| false };

    impl Fixture {
        fn claim(&self, job: &Job) -> Result<(Job, String), QueueError> {
            claim(&self.state, &self.store, job, &TERMS)
        }
    }

    #[test]
    fn the_hash_is_sha256() {
        let on = fixture();
        let (job, sha256) = on.claim(&on.add("a", b"abc")).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sha256.as_str(), job.sha256.as_deref()), (expected, Some(expected)));
    }

    /// What lies under a queued file's name is not what was looked at.
    #[test]
    fn what_was_exchanged_after_the_look_is_refused() {
        let on = fixture();
        for what in ["link", "folder", "socket", "pipe"] {
            let job = on.add(&format!("{what}.jsonl"), b"{}");
            std::fs::remove_file(&job.path).unwrap();
            let expected = match what {
                "link" => {
                    symlink("/etc/passwd", &job.path).unwrap();
                    Refusal::Symlink
                }
                "folder" => {
                    std::fs::create_dir(&job.path).unwrap();
                    Refusal::Folder
                }
                "socket" => {
                    std::os::unix::net::UnixListener::bind(&job.path).unwrap();
                    Refusal::Special
                }
                _ => {
                    let made = std::process::Command::new("mkfifo").arg(&job.path).status();
                    assert!(made.unwrap().success());
                    Refusal::Special
                }
            };
            let error = on.claim(&job).unwrap_err();
            let QueueError::Refused { refusal, .. } = &error else { panic!("{what}: {error}") };
            assert_eq!(*refusal, expected, "{what}");
        }
        // And where the exchange came between the rename and the hash.
        let job = on.add("late.jsonl", b"{}");
        let ours = place_in_processing(&on.state, &job);
        symlink("/etc/passwd", &ours).unwrap();
        let error = on.claim(&Job { path: ours, ..job }).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }

    #[test]
    fn a_file_with_another_name_is_copied() {
        let on = fixture();
        let job = on.add("a.jsonl", b"first");
        let other = on.folder.path().join("other-name");
        std::fs::hard_link(&job.path, &other).unwrap();
        let (claimed, sha256) = on.claim(&job).unwrap();
        assert!(!job.path.exists());
        let mut file = File::options().append(true).open(&other).unwrap();
        io::Write::write_all(&mut file, b" and more").unwrap();
        assert_eq!(std::fs::read(&claimed.path).unwrap(), b"first");
        assert_eq!(on.claim(&claimed).unwrap().1, sha256);
    }

    #[test]
    fn a_long_name_is_claimed_and_a_claim_can_be_stopped() {
        let on = fixture();
        let name = format!("{}.jsonl", "n".repeat(249));
        let path = on.state.inbox(Priority::Normal).join(&name);
        durable::write(&path, b"{}").unwrap();
        let new =
            NewJob { file_name: &name, path: &path, size_bytes: 2, priority: Priority::Normal };
        let job = on.store.enqueue(&new).unwrap();
        let stopped = ClaimTerms { max_bytes: 10, stop: &|| true };
        let error = claim(&on.state, &on.store, &job, &stopped).unwrap_err();
        let ours = place_in_processing(&on.state, &job);
        let QueueError::Stopped { path, .. } = &error else { panic!("{error}") };
        assert_eq!((path, ours.exists(), job.path.exists()), (&ours, true, false));
        let (claimed, _) = on.claim(&Job { path: ours, ..job }).unwrap();
        assert!(claimed.path.exists());
        let tight = ClaimTerms { max_bytes: 1, stop: &|| false };
        let error = claim(&on.state, &on.store, &claimed, &tight).unwrap_err();
        assert!(error.to_string().contains("limits.max_file"), "{error}");
    }
}
