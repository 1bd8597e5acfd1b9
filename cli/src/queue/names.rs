//! Names of files in folders of ours, which leave room for what we add to them.

use std::path::{Path, PathBuf};

/// A file system takes 255 bytes; a number before the name and `.report.json` behind it must fit.
const MAX_NAME_BYTES: usize = 200;

/// `name`, cut before its ending where it is too long.
pub(super) fn short_name(name: &str) -> String {
    if name.len() <= MAX_NAME_BYTES {
        return name.to_owned();
    }
    let ending = name.rfind('.').map_or("", |dot| &name[dot..]);
    let ending = if ending.len() > 16 { "" } else { ending };
    let room = MAX_NAME_BYTES - ending.len();
    format!("{}{ending}", &name[..name.floor_char_boundary(room)])
}

/// `name`, shortened, in `folder`, or the first of `name-2`, `name-3`, … that is free.
pub(super) fn free_name(folder: &Path, name: &str) -> PathBuf {
    let name = &short_name(name);
    let (stem, extension) = match name.split_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name.as_str(), String::new()),
    };
    std::iter::once(folder.join(name))
        .chain((2..=u64::MAX).map(|number| folder.join(format!("{stem}-{number}{extension}"))))
        .find(|path| {
            // A name that cannot be looked at may be in use.
            path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        })
        .unwrap_or_else(|| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str| chandler_durable::write(&folder.path().join(name), b"").unwrap();
        assert_eq!(free_name(folder.path(), "a.jsonl"), folder.path().join("a.jsonl"));
        put("a.jsonl");
        put("a-2.jsonl");
        assert_eq!(free_name(folder.path(), "a.jsonl"), folder.path().join("a-3.jsonl"));
        put("plain");
        assert_eq!(free_name(folder.path(), "plain"), folder.path().join("plain-2"));
    }

    #[test]
    fn a_long_name_keeps_its_ending_and_its_characters_whole() {
        let long = format!("{}.jsonl", "é".repeat(124));
        assert_eq!(long.len(), 254);
        let short = short_name(&long);
        assert_eq!(short, format!("{}.jsonl", "é".repeat(97)));
        assert_eq!(short_name("a.jsonl"), "a.jsonl");
        assert_eq!(short_name(&format!("a.{}", "b".repeat(250))).len(), MAX_NAME_BYTES);
    }
}
