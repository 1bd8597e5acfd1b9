//! A disk that remembers what was brought to it and what was only asked for, and that shows what
//! may be left of the latter after the power went.
//!
//! Of a file's bytes, those are safe that were written before the last `fsync` of the file; of each
//! later write any part may have arrived, whatever became of the writes before and after it. Of a
//! folder's names, those are safe that were there at the last `fsync` of the folder; of the later
//! changes each may have arrived or not, but a rename is never half done.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use crate::random::Random;

/// What a disk arrives by in one piece.
const SECTOR_BYTES: usize = 512;

/// Names a file or folder whatever its paths are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(u64);

const ROOT: Node = Node(0);

/// Where in a folder a name stands.
type Place = (Node, String);

/// A change of names.
#[derive(Clone, Debug)]
enum Edit {
    Add { place: Place, node: Node },
    Remove { place: Place },
    Move { from: Place, to: Place, node: Node },
    Exchange { one: Place, other: Place, nodes: (Node, Node) },
}

/// A change of a file's bytes.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Cut { length: usize },
}

/// A file's safe bytes and what came after them.
#[derive(Clone, Debug, Default)]
struct FileNode {
    safe: Vec<u8>,
    pending: Vec<Change>,
}

/// Folders by node: names to nodes.
type Names = BTreeMap<Node, BTreeMap<String, Node>>;

/// The disk under one folder.
#[derive(Clone, Debug)]
pub struct Disk {
    files: BTreeMap<Node, FileNode>,
    /// As the running program sees it.
    now: Names,
    /// As it would be after a power loss in which nothing unsynced arrived.
    safe: Names,
    pending: Vec<Edit>,
    next: u64,
}

/// Which of the unsynced changes arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// None of them.
    Everything,
    /// All of them.
    Nothing,
    /// Names in their order up to some point, as a journal has it; of bytes any part.
    Journal(u64),
    /// Any of them, by this seed.
    Any(u64),
}

/// What is on the disk after a power loss: contents by their paths; `None` for a folder.
pub type Contents = BTreeMap<String, Option<Vec<u8>>>;

impl Disk {
    /// A disk on which everything below `folder` is safe.
    pub fn of(folder: &Path) -> std::io::Result<Self> {
        let mut disk = Self {
            files: BTreeMap::new(),
            now: BTreeMap::from([(ROOT, BTreeMap::new())]),
            safe: BTreeMap::new(),
            pending: Vec::new(),
            next: 1,
        };
        disk.take_in(folder, ROOT)?;
        disk.safe.clone_from(&disk.now);
        Ok(disk)
    }

    fn take_in(&mut self, folder: &Path, node: Node) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            let child = self.fresh();
            if kind.is_dir() {
                self.now.insert(child, BTreeMap::new());
                self.take_in(&entry.path(), child)?;
            } else if kind.is_file() {
                let safe = std::fs::read(entry.path())?;
                self.files.insert(child, FileNode { safe, pending: vec![] });
            } else {
                continue;
            }
            self.now.entry(node).or_default().insert(name, child);
        }
        Ok(())
    }

    fn fresh(&mut self) -> Node {
        self.next += 1;
        Node(self.next)
    }

    /// The node at `path`, as the running program sees it.
    pub(crate) fn find(&self, path: &Path) -> Option<Node> {
        let mut node = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            node = *self.now.get(&node)?.get(name.to_str()?)?;
        }
        Some(node)
    }

    fn place(&self, path: &Path) -> Option<Place> {
        let folder = self.find(path.parent()?)?;
        Some((folder, path.file_name()?.to_str()?.to_owned()))
    }

    fn edit(&mut self, edit: Edit) {
        apply(&mut self.now, &edit);
        self.pending.push(edit);
    }

    /// A file was made, or opened if it was there.
    pub(crate) fn create(&mut self, path: &Path) -> Option<Node> {
        if let Some(node) = self.find(path) {
            return Some(node);
        }
        let place = self.place(path)?;
        let node = self.fresh();
        self.files.insert(node, FileNode::default());
        self.edit(Edit::Add { place, node });
        Some(node)
    }

    pub(crate) fn make_folder(&mut self, path: &Path) -> Option<()> {
        let place = self.place(path)?;
        let node = self.fresh();
        self.now.insert(node, BTreeMap::new());
        self.safe.insert(node, BTreeMap::new());
        self.edit(Edit::Add { place, node });
        Some(())
    }

    pub(crate) fn link(&mut self, from: &Path, to: &Path) -> Option<()> {
        let (node, place) = (self.find(from)?, self.place(to)?);
        self.edit(Edit::Add { place, node });
        Some(())
    }

    pub(crate) fn remove(&mut self, path: &Path) -> Option<()> {
        let place = self.place(path)?;
        self.edit(Edit::Remove { place });
        Some(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path, exchanges: bool) -> Option<()> {
        let (one, other) = (self.place(from)?, self.place(to)?);
        let node = self.find(from)?;
        if exchanges {
            let nodes = (node, self.find(to)?);
            self.edit(Edit::Exchange { one, other, nodes });
        } else {
            self.edit(Edit::Move { from: one, to: other, node });
        }
        Some(())
    }

    pub(crate) fn write(&mut self, node: Node, offset: usize, bytes: Vec<u8>) {
        let file = self.files.entry(node).or_default();
        file.pending.push(Change::Write { offset, bytes });
    }

    pub(crate) fn cut(&mut self, node: Node, length: usize) {
        self.files.entry(node).or_default().pending.push(Change::Cut { length });
    }

    /// A file or folder was synced.
    pub(crate) fn sync(&mut self, node: Node) {
        if let Some(file) = self.files.get_mut(&node) {
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.safe);
            }
            return;
        }
        let (safe, rest) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition::<Vec<_>, _>(|edit| edit.concerns(node));
        for edit in &safe {
            apply(&mut self.safe, edit);
        }
        self.pending = rest;
    }

    /// Changes that no `fsync` has brought to the disk.
    pub fn unsynced(&self) -> usize {
        self.pending.len() + self.files.values().map(|file| file.pending.len()).sum::<usize>()
    }

    /// What a reader finds after the power went now and `loss` was lost.
    pub fn after(&self, loss: Loss) -> Contents {
        let mut random = Random::new(match loss {
            Loss::Journal(seed) | Loss::Any(seed) => seed,
            Loss::Everything | Loss::Nothing => 0,
        });
        let mut names = self.safe.clone();
        let cut = random.below(self.pending.len() as u64 + 1) as usize;
        for (at, edit) in self.pending.iter().enumerate() {
            let arrived = match loss {
                Loss::Everything => false,
                Loss::Nothing => true,
                Loss::Journal(_) => at < cut,
                Loss::Any(_) => random.below(2) == 1,
            };
            if arrived {
                apply(&mut names, edit);
            }
        }
        let mut contents = Contents::new();
        self.gather(&names, ROOT, "", loss, &mut random, &mut contents);
        contents
    }

    fn gather(
        &self,
        names: &Names,
        folder: Node,
        prefix: &str,
        loss: Loss,
        random: &mut Random,
        contents: &mut Contents,
    ) {
        for (name, node) in names.get(&folder).into_iter().flatten() {
            let path = format!("{prefix}{name}");
            match self.files.get(node) {
                Some(file) => {
                    contents.insert(path, Some(file.after(loss, random)));
                }
                None => {
                    contents.insert(path.clone(), None);
                    self.gather(names, *node, &format!("{path}/"), loss, random, contents);
                }
            }
        }
    }
}

impl FileNode {
    fn after(&self, loss: Loss, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.safe.clone();
        for change in &self.pending {
            match loss {
                Loss::Everything => {}
                Loss::Nothing => change.apply(&mut bytes),
                Loss::Journal(_) | Loss::Any(_) => match random.below(4) {
                    0 => {}
                    1 => change.torn(random).apply(&mut bytes),
                    _ => change.apply(&mut bytes),
                },
            }
        }
        bytes
    }
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset..end].copy_from_slice(bytes);
            }
            Self::Cut { length } => file.resize(*length, 0),
        }
    }

    /// Up to some sector.
    fn torn(&self, random: &mut Random) -> Self {
        match self {
            Self::Write { offset, bytes } => {
                let sectors = bytes.len().div_ceil(SECTOR_BYTES) as u64;
                let kept = random.below(sectors + 1) as usize * SECTOR_BYTES;
                Self::Write { offset: *offset, bytes: bytes[..kept.min(bytes.len())].to_vec() }
            }
            Self::Cut { .. } => self.clone(),
        }
    }
}

impl Edit {
    fn concerns(&self, folder: Node) -> bool {
        match self {
            Self::Add { place, .. } | Self::Remove { place } => place.0 == folder,
            Self::Move { from: one, to: other, .. } | Self::Exchange { one, other, .. } => {
                one.0 == folder || other.0 == folder
            }
        }
    }
}

fn apply(names: &mut Names, edit: &Edit) {
    let mut put = |place: &Place, node: Option<Node>| {
        let folder = names.entry(place.0).or_default();
        match node {
            Some(node) => folder.insert(place.1.clone(), node),
            None => folder.remove(&place.1),
        };
    };
    match edit {
        Edit::Add { place, node } => put(place, Some(*node)),
        Edit::Remove { place } => put(place, None),
        Edit::Move { from, to, node } => {
            put(from, None);
            put(to, Some(*node));
        }
        Edit::Exchange { one, other, nodes } => {
            put(one, Some(nodes.1));
            put(other, Some(nodes.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(contents: &Contents, path: &str) -> Option<String> {
        Some(String::from_utf8(contents.get(path)?.clone()?).unwrap())
    }

    /// All that may be found at `path`, over many losses.
    fn found(disk: &Disk, path: &str) -> Vec<Option<String>> {
        let mut all: Vec<_> = (0..200)
            .flat_map(|seed| [Loss::Any(seed), Loss::Journal(seed)])
            .chain([Loss::Everything, Loss::Nothing])
            .map(|loss| text(&disk.after(loss), path))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_may_be_anything() {
        let folder = tempfile::tempdir().unwrap();
        chandler_durable::write(&folder.path().join("old"), b"old").unwrap();
        let mut disk = Disk::of(folder.path()).unwrap();
        let node = disk.create(Path::new("new")).unwrap();
        disk.write(node, 0, b"ab".to_vec());
        disk.write(node, 2, b"cd".to_vec());
        let seen = found(&disk, "new");
        for expected in [None, Some(""), Some("ab"), Some("abcd"), Some("\0\0cd")] {
            assert!(seen.contains(&expected.map(str::to_owned)), "{expected:?} of {seen:?}");
        }
        disk.sync(node);
        assert_eq!(found(&disk, "new"), [None, Some("abcd".to_owned())], "the name is not safe");
        disk.sync(ROOT);
        assert_eq!(found(&disk, "new"), [Some("abcd".to_owned())]);
        assert_eq!((found(&disk, "old"), disk.unsynced()), (vec![Some("old".to_owned())], 0));
    }

    #[test]
    fn a_rename_is_never_half_done() {
        let folder = tempfile::tempdir().unwrap();
        chandler_durable::write(&folder.path().join("state"), b"old").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let mut disk = Disk::of(folder.path()).unwrap();
        let node = disk.create(Path::new("sub/next")).unwrap();
        disk.write(node, 0, b"new".to_vec());
        disk.sync(node);
        disk.rename(Path::new("sub/next"), Path::new("state"), false).unwrap();
        assert_eq!(found(&disk, "state"), [Some("new".to_owned()), Some("old".to_owned())]);
        disk.rename(Path::new("state"), Path::new("sub/moved"), false).unwrap();
        for seed in 0..50 {
            let after = disk.after(Loss::Journal(seed));
            let places = ["state", "sub/moved"].map(|path| text(&after, path));
            assert!(places.iter().flatten().any(|text| text == "new" || text == "old"));
        }
    }
}
