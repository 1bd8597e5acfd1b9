//! Whether a sealed folder is what its manifest says.

use std::io::{self, Read};
use std::path::Path;

use crate::error::At;
use crate::manifest::{MANIFEST_NAME, Manifest};
use crate::{DurableError, Fs, Operation, digest};

/// More than a manifest of ten thousand files takes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// What [`verify`] finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every file is as it was sealed.
    Whole(Manifest),
    /// Something is not; nothing in the folder should be believed.
    Broken(Broken),
}

/// Why a folder is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It was never sealed.
    #[error("it has no manifest.json")]
    NoManifest,
    /// Its manifest cannot be understood.
    #[error("its manifest.json is not to be believed: {reason}")]
    BadManifest {
        /// What the reader says.
        reason: String,
    },
    /// A file is gone.
    #[error("{name} is missing")]
    Missing {
        /// Which.
        name: String,
    },
    /// A file has another size.
    #[error("{name} has {found} bytes, and was sealed with {sealed}")]
    Size {
        /// Which.
        name: String,
        /// Bytes by the manifest.
        sealed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A file has other bytes.
    #[error("{name} is not what was sealed")]
    Hash {
        /// Which.
        name: String,
    },
}

/// Reads every file of a sealed folder and compares it with the manifest.
///
/// An error means that the folder could not be judged, not that it is broken.
pub fn verify(fs: &dyn Fs, folder: &Path) -> Result<Verdict, DurableError> {
    let manifest = match read_manifest(fs, folder)? {
        Ok(manifest) => manifest,
        Err(broken) => return Ok(Verdict::Broken(broken)),
    };
    for record in &manifest.files {
        let name = record.name.clone();
        if !is_plain_name(&name) {
            let reason = format!("{name:?} is not a file name");
            return Ok(Verdict::Broken(Broken::BadManifest { reason }));
        }
        let path = folder.join(&name);
        let broken = match digest::like(&record.hash, fs, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Broken::Missing { name },
            Err(error) => return Err(error).at(Operation::Read, &path),
            Ok((bytes, _)) if bytes != record.bytes => {
                Broken::Size { name, sealed: record.bytes, found: bytes }
            }
            Ok((_, hash)) if hash != record.hash => Broken::Hash { name },
            Ok(_) => continue,
        };
        return Ok(Verdict::Broken(broken));
    }
    Ok(Verdict::Whole(manifest))
}

/// Reads the manifest of a sealed folder, and looks at none of its files.
///
/// The outer error means that it could not be judged, the inner one that it is not to be believed.
pub fn read_manifest(fs: &dyn Fs, folder: &Path) -> Result<Result<Manifest, Broken>, DurableError> {
    let path = folder.join(MANIFEST_NAME);
    let file = match fs.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err(Broken::NoManifest));
        }
        Err(error) => return Err(error).at(Operation::Read, &path),
    };
    let mut text = Vec::new();
    file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).at(Operation::Read, &path)?;
    Ok(Manifest::decode(text).map_err(|reason| Broken::BadManifest { reason }))
}

/// No file system in use has longer names, and one that is asked for such a name answers with an error
/// that is not "there is none".
const MAX_NAME_BYTES: usize = 255;

/// A visible name without a path.
pub(crate) fn is_plain_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RealFs;

    #[test]
    fn a_name_that_no_file_can_have_is_judged() {
        let folder = tempfile::tempdir().unwrap();
        for length in [255, 256, 5000] {
            let name = "n".repeat(length);
            let files = serde_json::json!([{ "name": name, "bytes": 1, "sha256": "" }]);
            let manifest = serde_json::json!({ "version": 1, "files": files, "extra": null });
            crate::write(&folder.path().join(MANIFEST_NAME), manifest.to_string().as_bytes())
                .unwrap();
            assert!(matches!(verify(&RealFs, folder.path()).unwrap(), Verdict::Broken(_)));
        }
    }
}
