//! Whose the files of the state directory are, and whether this user may use them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::check::Check;
use crate::priority::Priority;
use crate::state_dir::StateDir;

/// Names of a folder that are looked at.
const MOST_NAMES: usize = 500;

/// Who looks, and what was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    user: u32,
    files: Vec<Owned>,
}

/// A file or folder.
#[derive(Debug)]
struct Owned {
    path: PathBuf,
    owner: u32,
    /// Whether this user may write to it, and list it where it is a folder.
    usable: bool,
}

/// The state directory, its folders, and the names in them.
pub(super) fn read(state: &StateDir) -> Found {
    let mut files = Vec::new();
    push(state.root(), &mut files);
    let inboxes = Priority::ALL.map(|priority| state.inbox(priority));
    let folders = [state.processing(), state.done(), state.failed(), state.checkpoints()];
    let more = [state.snapshots(), state.model(), state.logs(), state.cache(), state.control()];
    let folders = inboxes.into_iter().chain(folders).chain(more);
    for folder in std::iter::once(state.root().to_owned()).chain(folders) {
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        names.take(MOST_NAMES).for_each(|name| push(&name.path(), &mut files));
    }
    Found { user: rustix::process::geteuid().as_raw(), files }
}

fn push(path: &Path, files: &mut Vec<Owned>) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let wanted = if metadata.is_dir() {
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK
    } else {
        Access::READ_OK
    };
    let usable = metadata.is_symlink() || access(path, wanted).is_ok();
    files.push(Owned { path: path.to_owned(), owner: metadata.uid(), usable });
}

pub(super) fn check(found: &Found) -> Vec<Check> {
    const NAME: &str = "permissions";
    let named = |files: &[&Owned]| {
        let first = files[0].path.display();
        match files.len() {
            1 => first.to_string(),
            many => format!("{first} and {} more", many - 1),
        }
    };
    let closed: Vec<&Owned> = found.files.iter().filter(|file| !file.usable).collect();
    let foreign: Vec<&Owned> = found.files.iter().filter(|file| file.owner != found.user).collect();
    let mut checks = Vec::new();
    if !closed.is_empty() {
        checks.push(Check::problem(
            NAME,
            format!("user {} may not use {}", found.user, named(&closed)),
            format!("`sudo chown -R {} DIR` on the state directory, or be its owner", found.user),
        ));
    }
    if !foreign.is_empty() {
        checks.push(Check::warning(
            NAME,
            format!("user {} owns {}", foreign[0].owner, named(&foreign)),
            format!(
                "a daemon that ran as another user left it: always be the same one, or `sudo chown \
                 -R {} DIR`",
                found.user
            ),
        ));
    }
    if checks.is_empty() {
        let files = found.files.len();
        checks.push(Check::ok(NAME, format!("user {} owns all {files} files", found.user)));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn what_is_closed_or_anothers_is_named() {
        let file = |path: &str, owner, usable| Owned { path: path.into(), owner, usable };
        let with = |files| check(&Found { user: 7, files });
        let good = with(vec![file("/s/a", 7, true)]);
        assert_eq!(good[0].verdict, Verdict::Ok);
        let bad = with(vec![file("/s/a", 7, true), file("/s/b", 0, true), file("/s/c", 0, false)]);
        assert_eq!((bad[0].verdict, bad[1].verdict), (Verdict::Problem, Verdict::Warning));
        assert_eq!(bad[0].detail, "user 7 may not use /s/c");
        assert_eq!(bad[1].detail, "user 0 owns /s/b and 1 more");
        assert!(bad.iter().all(|check| check.hint.as_ref().unwrap().contains("chown -R 7")));
    }

    #[test]
    fn a_fresh_state_directory_is_all_ours() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(folder.path()), folder.path());
        state.init("").unwrap();
        let found = read(&state);
        assert!(found.files.len() > 8, "{found:?}");
        assert_eq!(check(&found)[0].verdict, Verdict::Ok);
    }
}
