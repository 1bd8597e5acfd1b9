//! Names of files in folders of ours, which leave room for what we add to them.

use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, DurableError, RealFs};

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

/// `name`, shortened, in `folder`, then `name-2`, `name-3`, …: the first that is free is for whoever
/// renames to it without replacing anything.
pub(super) fn places(folder: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let (folder, name) = (folder.to_owned(), short_name(name));
    let (stem, extension) = match name.split_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem.to_owned(), format!(".{extension}")),
        _ => (name.clone(), String::new()),
    };
    std::iter::once(folder.join(name))
        .chain((2..=u64::MAX).map(move |number| folder.join(format!("{stem}-{number}{extension}"))))
}

/// Moves a file to the first free of these places.
pub(super) fn move_to_place(
    from: &Path,
    folder: &Path,
    name: &str,
) -> Result<PathBuf, DurableError> {
    durable::rename_to_free_place(&RealFs, from, places(folder, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_use_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (new, place) = (folder.path().join("new"), |name: &str| folder.path().join(name));
        for (name, expected) in [
            ("a.jsonl", "a.jsonl"),
            ("a.jsonl", "a-2.jsonl"),
            ("a.jsonl", "a-3.jsonl"),
            ("plain", "plain"),
            ("plain", "plain-2"),
        ] {
            durable::write(&new, expected.as_bytes()).unwrap();
            assert_eq!(move_to_place(&new, folder.path(), name).unwrap(), place(expected));
        }
        assert_eq!(std::fs::read(place("a.jsonl")).unwrap(), b"a.jsonl");
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
