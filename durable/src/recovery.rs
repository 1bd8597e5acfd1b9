//! Finding what a crash left whole.

use std::path::{Path, PathBuf};

use crate::error::At;
use crate::manifest::Manifest;
use crate::natural_order::natural_cmp;
use crate::quarantine::quarantine;
use crate::verify::{Broken, Verdict, verify};
use crate::{DurableError, Fs, Operation};

/// What [`newest_good`] found, and what it moved aside on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewestGood {
    /// The newest folder that is whole.
    pub good: Option<(PathBuf, Manifest)>,
    /// Newer folders that were not.
    pub quarantined: Vec<Quarantined>,
}

/// A folder that was moved aside.
#[derive(Clone, Debug, PartialEq)]
pub struct Quarantined {
    /// Where it stood.
    pub was: PathBuf,
    /// Where it is now.
    pub is: PathBuf,
    /// What is wrong with it.
    pub reason: Broken,
}

/// The newest whole folder in `parent` whose name begins with `prefix`, by the numbers in the
/// names; newer ones that are broken are quarantined.
///
/// It may be interrupted and called again. A `parent` that is not there holds nothing.
pub fn newest_good(fs: &dyn Fs, parent: &Path, prefix: &str) -> Result<NewestGood, DurableError> {
    let mut found = NewestGood::default();
    let entries = match fs.list(parent) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.at(Operation::List, parent)?,
    };
    let mut names: Vec<String> = entries
        .into_iter()
        .filter(|entry| entry.is_folder)
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort_by(|a, b| natural_cmp(b, a));
    for name in names {
        let path = parent.join(name);
        match verify(fs, &path)? {
            Verdict::Whole(manifest) => {
                found.good = Some((path, manifest));
                break;
            }
            Verdict::Broken(reason) => {
                let is = quarantine(fs, &path)?;
                found.quarantined.push(Quarantined { was: path, is, reason });
            }
        }
    }
    Ok(found)
}
