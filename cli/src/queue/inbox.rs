//! A look into the inbox: which files may be taken, which are still being written, which never.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chandler_durable::natural_cmp;

use super::error::QueueError;
use super::refusal::{Refusal, plain_name};
use super::writers::being_written;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{Job, JobState, NewJob, Store};

/// What one look into the inbox found.
#[derive(Debug, Default)]
pub struct Look {
    /// Files that entered the queue.
    pub queued: Vec<Job>,
    /// Files that are still being written, or have not lain still for long enough.
    pub unsettled: Vec<PathBuf>,
    /// Things that are refused, each told once.
    pub refused: Vec<(PathBuf, Refusal)>,
}

/// A file that lies still.
struct Candidate {
    path: PathBuf,
    name: String,
    priority: Priority,
    size_bytes: u64,
    modified: SystemTime,
}

impl Candidate {
    fn as_job(&self) -> NewJob<'_> {
        let Self { path, name, priority, size_bytes, .. } = self;
        NewJob { file_name: name, path, size_bytes: *size_bytes, priority: *priority }
    }
}

/// What a file looked like when it last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    size_bytes: u64,
    modified: SystemTime,
    inode: u64,
}

/// The inbox of a state directory, and what it looked like before.
#[derive(Debug)]
pub struct Inbox {
    state: StateDir,
    settle: Duration,
    max_bytes: u64,
    seen: BTreeMap<PathBuf, (Shape, SystemTime)>,
    told: BTreeSet<PathBuf>,
}

impl Inbox {
    /// An inbox whose files must lie still for `settle` before they are taken, and may have at most
    /// `max_bytes`.
    pub fn new(state: &StateDir, settle: Duration, max_bytes: u64) -> Self {
        let (seen, told) = (BTreeMap::new(), BTreeSet::new());
        Self { state: state.clone(), settle, max_bytes, seen, told }
    }

    /// Looks into the inbox and queues what lies still, oldest first.
    pub fn look(&mut self, store: &Store, now: SystemTime) -> Result<Look, QueueError> {
        let queued: BTreeSet<PathBuf> =
            store.jobs_in(JobState::Queued)?.into_iter().map(|job| job.path).collect();
        let mut look = Look::default();
        let mut present = BTreeSet::new();
        let mut candidates = Vec::new();
        for priority in Priority::ALL {
            let folder = self.state.inbox(priority);
            for path in list(&folder)? {
                if !queued.contains(&path) && !self.is_our_folder(&path) {
                    present.insert(path.clone());
                    self.consider(path, priority, now, &mut candidates, &mut look);
                }
            }
        }
        self.seen.retain(|path, _| present.contains(path));
        self.told.retain(|path| present.contains(path));
        if !candidates.is_empty() {
            let written = being_written(&self.state.inbox(Priority::Normal));
            let (open, closed): (Vec<_>, Vec<_>) =
                candidates.into_iter().partition(|candidate| written.contains(&candidate.path));
            look.unsettled.extend(open.into_iter().map(|candidate| candidate.path));
            candidates = closed;
        }
        candidates.sort_by(|left, right| {
            left.modified.cmp(&right.modified).then_with(|| natural_cmp(&left.name, &right.name))
        });
        let new: Vec<NewJob> = candidates.iter().map(Candidate::as_job).collect();
        look.queued = store.enqueue_all(&new)?;
        Ok(look)
    }

    fn is_our_folder(&self, path: &Path) -> bool {
        Priority::ALL.into_iter().any(|priority| self.state.inbox(priority) == path)
    }

    fn consider(
        &mut self,
        path: PathBuf,
        priority: Priority,
        now: SystemTime,
        candidates: &mut Vec<Candidate>,
        look: &mut Look,
    ) {
        // What is gone by now was moved away by its owner.
        let Ok(metadata) = path.symlink_metadata() else { return };
        let name = plain_name(&path).map(str::to_owned);
        let refusal = Refusal::of(&metadata)
            .or(name.is_none().then_some(Refusal::Name))
            .or((metadata.len() > self.max_bytes).then_some(Refusal::TooLarge))
            .or(is_unreadable(&path).then_some(Refusal::Unreadable));
        match (refusal, name) {
            (None, Some(name)) => {
                let shape = Shape {
                    size_bytes: metadata.len(),
                    modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    inode: metadata.ino(),
                };
                if self.lies_still(&path, shape, changed_at(&metadata), now) {
                    candidates.push(Candidate {
                        path,
                        name,
                        priority,
                        size_bytes: shape.size_bytes,
                        modified: shape.modified,
                    });
                } else {
                    look.unsettled.push(path);
                }
            }
            (refusal, _) => {
                if let Some(refusal) = refusal
                    && self.told.insert(path.clone())
                {
                    look.refused.push((path, refusal));
                }
            }
        }
    }

    /// Whether a file kept its shape for the settling time.
    ///
    /// A file met for the first time is taken to stand as it is since its last change, so that old
    /// files need no second look. A change dated in the future counts from now.
    fn lies_still(
        &mut self,
        path: &Path,
        shape: Shape,
        changed: SystemTime,
        now: SystemTime,
    ) -> bool {
        let since = match self.seen.get(path) {
            // A clock that was set back counts from now too.
            Some((before, since)) if *before == shape => (*since).min(now),
            _ => changed.min(now),
        };
        self.seen.insert(path.to_owned(), (shape, since));
        let age = now.duration_since(since).unwrap_or(Duration::ZERO);
        age >= self.settle
    }
}

fn is_unreadable(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    access(path, Access::READ_OK) == Err(rustix::io::Errno::ACCESS)
}

/// When the file's contents or attributes last changed; unlike its modification time, this cannot
/// be set by a copying program.
fn changed_at(metadata: &Metadata) -> SystemTime {
    let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

/// What lies in a folder, without names that begin with a dot.
fn list(folder: &Path) -> Result<Vec<PathBuf>, QueueError> {
    let failed = |source| QueueError::List { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SETTLE: Duration = Duration::from_secs(2);
    const MAX_BYTES: u64 = 1 << 20;

    struct Fixture {
        _folder: tempfile::TempDir,
        state: StateDir,
        store: Store,
        inbox: Inbox,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(Path::new("state")), folder.path());
        state.init("").unwrap();
        let store = Store::open(&state.database()).unwrap();
        let inbox = Inbox::new(&state, SETTLE, MAX_BYTES);
        Fixture { _folder: folder, state, store, inbox }
    }

    fn later(seconds: u64) -> SystemTime {
        SystemTime::now() + Duration::from_secs(seconds)
    }

    fn put(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::File::create(&path).unwrap().write_all(b"{}\n").unwrap();
        path
    }

    #[test]
    fn a_fresh_file_waits_and_an_old_one_is_queued_once() {
        let mut on = fixture();
        let path = put(&on.state.inbox(Priority::Normal), "a.jsonl");
        let look = on.inbox.look(&on.store, SystemTime::now()).unwrap();
        assert_eq!((look.queued.len(), look.unsettled), (0, vec![path]));
        assert_eq!(on.inbox.look(&on.store, later(3)).unwrap().queued.len(), 1);
        assert_eq!(on.inbox.look(&on.store, later(6)).unwrap().queued.len(), 0);
    }

    #[test]
    fn a_file_that_grows_starts_its_wait_anew() {
        let mut on = fixture();
        let path = put(&on.state.inbox(Priority::Normal), "a.jsonl");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let shape = |size_bytes| Shape { size_bytes, modified: at(0), inode: 1 };
        assert!(!on.inbox.lies_still(&path, shape(3), at(100), at(101)));
        assert!(!on.inbox.lies_still(&path, shape(6), at(102), at(103)), "it grew at 102");
        assert!(on.inbox.lies_still(&path, shape(6), at(102), at(104)));
        // A clock that runs ahead on the file server: the wait counts from the first look.
        assert!(!on.inbox.lies_still(&path, shape(9), at(900), at(105)));
        assert!(!on.inbox.lies_still(&path, shape(9), at(900), at(106)));
        assert!(on.inbox.lies_still(&path, shape(9), at(900), at(107)));
    }

    #[test]
    fn a_clock_that_was_wrong_keeps_no_file_waiting() {
        let mut on = fixture();
        let path = put(&on.state.inbox(Priority::Normal), "a.jsonl");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let shape = Shape { size_bytes: 3, modified: at(0), inode: 1 };
        assert!(!on.inbox.lies_still(&path, shape, at(9000), at(9000)));
        assert!(!on.inbox.lies_still(&path, shape, at(9000), at(100)), "set back");
        assert!(on.inbox.lies_still(&path, shape, at(9000), at(103)));
    }

    #[test]
    fn a_file_open_for_writing_is_left_however_old() {
        let mut on = fixture();
        let path = put(&on.state.inbox(Priority::Normal), "a.jsonl");
        let writer = std::fs::File::options().append(true).open(&path).unwrap();
        assert_eq!(on.inbox.look(&on.store, later(100)).unwrap().unsettled, [path]);
        drop(writer);
        assert_eq!(on.inbox.look(&on.store, later(101)).unwrap().queued.len(), 1);
    }

    #[test]
    fn links_folders_and_pipes_are_refused_once_and_dotfiles_not_seen() {
        let mut on = fixture();
        let inbox = on.state.inbox(Priority::Normal);
        std::os::unix::fs::symlink("/etc/passwd", inbox.join("link.jsonl")).unwrap();
        std::fs::create_dir(inbox.join("folder")).unwrap();
        std::os::unix::net::UnixListener::bind(inbox.join("socket")).unwrap();
        put(&inbox, ".hidden.jsonl");
        let look = on.inbox.look(&on.store, later(100)).unwrap();
        assert_eq!(
            look.refused,
            [
                (inbox.join("folder"), Refusal::Folder),
                (inbox.join("link.jsonl"), Refusal::Symlink),
                (inbox.join("socket"), Refusal::Special),
            ]
        );
        assert!(look.queued.is_empty() && look.unsettled.is_empty());
        assert!(on.inbox.look(&on.store, later(101)).unwrap().refused.is_empty());
    }

    #[test]
    fn names_that_act_and_files_without_end_are_refused_and_odd_names_are_not() {
        let mut on = fixture();
        let inbox = on.state.inbox(Priority::Normal);
        let evil = put(&inbox, "a\u{1b}[2J\n.jsonl");
        let huge = put(&inbox, "huge.jsonl");
        // Sparse: it takes no room.
        std::fs::File::options().write(true).open(&huge).unwrap().set_len(1 << 43).unwrap();
        put(&inbox, "'$(odd)' .. name.jsonl");
        let look = on.inbox.look(&on.store, later(100)).unwrap();
        let expected = [(evil, Refusal::Name), (huge, Refusal::TooLarge)];
        assert_eq!(look.refused, expected);
        assert_eq!(look.queued.len(), 1);
    }

    #[test]
    fn folders_give_priority_and_names_break_ties_as_people_count() {
        let mut on = fixture();
        let stamp = SystemTime::now();
        for (priority, name) in [
            (Priority::Normal, "part-10.jsonl"),
            (Priority::Normal, "part-9.jsonl"),
            (Priority::High, "z.jsonl"),
            (Priority::Low, "a.jsonl"),
        ] {
            let path = put(&on.state.inbox(priority), name);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(stamp).unwrap();
        }
        on.inbox.look(&on.store, later(100)).unwrap();
        let queued = on.store.jobs_in(JobState::Queued).unwrap();
        let order: Vec<&str> = queued.iter().map(|job| job.file_name.as_str()).collect();
        assert_eq!(order, ["z.jsonl", "part-9.jsonl", "part-10.jsonl", "a.jsonl"]);
    }
}
