//! Keeps every change that a program makes to the files of a folder, in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::call::{Call, Kind};
use crate::disk::{Disk, Node};
use crate::tracer::{Verdict, Watcher};

/// One change, in terms of paths as they were when it happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// What was done, for people.
    pub label: String,
    /// What was done.
    pub kind: Kind,
    /// Relative to the watched folder.
    pub path: PathBuf,
    effect: Effect,
}

#[derive(Clone, Debug)]
enum Effect {
    /// The file's identity, and whether what it held is gone.
    Opened {
        inode: u64,
        length: u64,
    },
    Wrote {
        inode: u64,
        offset: usize,
        bytes: Vec<u8>,
    },
    Cut {
        inode: u64,
        length: usize,
    },
    SyncedFile {
        inode: u64,
    },
    SyncedFolder,
    Renamed {
        to: PathBuf,
        exchanges: bool,
    },
    Linked {
        to: PathBuf,
    },
    Removed,
    MadeFolder,
}

/// Listens to a traced program.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    /// What happened.
    pub events: Vec<Event>,
    /// The first thing that could not be understood.
    pub trouble: Option<String>,
}

impl Recorder {
    /// For the folder that the tracer watches.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), events: Vec::new(), trouble: None }
    }

    fn effect(pid: i32, call: &Call, result: i64) -> Option<Effect> {
        let described = |descriptor: u64| PathBuf::from(format!("/proc/{pid}/fd/{descriptor}"));
        let inode = |descriptor: u64| Some(described(descriptor).metadata().ok()?.ino());
        Some(match call.kind {
            Kind::Create => {
                let metadata = described(result as u64).metadata().ok()?;
                Effect::Opened { inode: metadata.ino(), length: metadata.len() }
            }
            Kind::Write => {
                let descriptor = call.descriptor?;
                let offset = match call.offset {
                    Some(offset) => offset,
                    None => position(pid, descriptor)? - result as u64,
                };
                let mut bytes = vec![0; result as usize];
                let file = File::open(described(descriptor)).ok()?;
                file.read_exact_at(&mut bytes, offset).ok()?;
                Effect::Wrote { inode: inode(descriptor)?, offset: offset as usize, bytes }
            }
            Kind::Clone => {
                let bytes = std::fs::read(described(call.descriptor?)).ok()?;
                Effect::Wrote { inode: inode(call.descriptor?)?, offset: 0, bytes }
            }
            Kind::Truncate => {
                Effect::Cut { inode: inode(call.descriptor?)?, length: call.offset? as usize }
            }
            Kind::Sync => {
                let metadata = described(call.descriptor?).metadata().ok()?;
                if metadata.is_dir() {
                    Effect::SyncedFolder
                } else {
                    Effect::SyncedFile { inode: metadata.ino() }
                }
            }
            Kind::Rename => Effect::Renamed { to: call.to.clone()?, exchanges: call.exchanges },
            Kind::Link => Effect::Linked { to: call.to.clone()? },
            Kind::Remove | Kind::RemoveFolder => Effect::Removed,
            Kind::MakeFolder => Effect::MadeFolder,
            Kind::Open | Kind::Read | Kind::List | Kind::Stat => return None,
        })
    }
}

/// Where the next byte of an open file would go.
fn position(pid: i32, descriptor: u64) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
}

impl Watcher for Recorder {
    fn before(&mut self, _: &Call) -> Verdict {
        Verdict::Go
    }

    fn after(&mut self, pid: i32, call: &Call, result: i64) {
        if result < 0 || !call.kind.changes() || is_shared_memory(&call.path) {
            return;
        }
        match Self::effect(pid, call, result) {
            Some(effect) => self.events.push(Event {
                label: call.label(),
                kind: call.kind,
                path: call.path.clone(),
                effect,
            }),
            None => {
                let words = || format!("{} below {}", call.label(), self.root.display());
                self.trouble.get_or_insert_with(words);
            }
        }
    }
}

/// SQLite's index of its log: mapped, and made anew after a crash.
pub(crate) fn is_shared_memory(path: &Path) -> bool {
    path.to_string_lossy().ends_with("-shm")
}

/// A disk that goes through recorded events one by one.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The disk after the events so far.
    pub disk: Disk,
    nodes: BTreeMap<u64, Node>,
}

impl Replay {
    /// Begins with a disk as it was before the first event.
    pub fn new(disk: Disk) -> Self {
        Self { disk, nodes: BTreeMap::new() }
    }

    /// One event further.
    pub fn step(&mut self, event: &Event) {
        // What concerns files that were unlinked, or made before the recording, goes by its path.
        let _ = self.apply(event);
    }

    fn apply(&mut self, event: &Event) -> Option<()> {
        match &event.effect {
            Effect::Opened { inode, length } => {
                let is_new = self.disk.find(&event.path).is_none();
                let node = self.disk.create(&event.path)?;
                self.nodes.insert(*inode, node);
                if !is_new && *length == 0 {
                    self.disk.cut(node, 0);
                }
            }
            Effect::Wrote { inode, offset, bytes } => {
                let node = self.node(*inode, &event.path)?;
                self.disk.write(node, *offset, bytes.clone());
            }
            Effect::Cut { inode, length } => {
                let node = self.node(*inode, &event.path)?;
                self.disk.cut(node, *length);
            }
            Effect::SyncedFile { inode } => {
                let node = self.node(*inode, &event.path)?;
                self.disk.sync(node);
            }
            Effect::SyncedFolder => {
                let node = self.disk.find(&event.path)?;
                self.disk.sync(node);
            }
            Effect::Renamed { to, exchanges } => self.disk.rename(&event.path, to, *exchanges)?,
            Effect::Linked { to } => self.disk.link(&event.path, to)?,
            Effect::Removed => self.disk.remove(&event.path)?,
            Effect::MadeFolder => self.disk.make_folder(&event.path)?,
        }
        Some(())
    }

    fn node(&mut self, inode: u64, path: &Path) -> Option<Node> {
        let found = self.disk.find(path);
        match (found, self.nodes.get(&inode)) {
            (Some(node), _) => Some(node),
            (None, known) => known.copied(),
        }
    }
}
