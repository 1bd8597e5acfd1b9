//! Size and hash of a file, read through an [`Fs`].

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{FileHash, Fs};

const CHUNK_BYTES: usize = 1 << 20;

/// A hash that is being made.
trait Making {
    fn update(&mut self, bytes: &[u8]);
    fn made(self) -> FileHash;
}

impl Making for blake3::Hasher {
    fn update(&mut self, bytes: &[u8]) {
        blake3::Hasher::update(self, bytes);
    }

    fn made(self) -> FileHash {
        blake3_of(&self)
    }
}

impl Making for Sha256 {
    fn update(&mut self, bytes: &[u8]) {
        Digest::update(self, bytes);
    }

    fn made(self) -> FileHash {
        let digest = self.finalize();
        FileHash::Sha256(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// What was hashed so far.
pub(crate) fn blake3_of(hash: &blake3::Hasher) -> FileHash {
    FileHash::Blake3(hash.finalize().to_hex().to_string())
}

/// Bytes and hash of `path`.
pub(crate) fn of_file(fs: &dyn Fs, path: &Path) -> io::Result<(u64, FileHash)> {
    hashed(fs, path, blake3::Hasher::new())
}

/// The same by the hash that `known` is.
pub(crate) fn like(known: &FileHash, fs: &dyn Fs, path: &Path) -> io::Result<(u64, FileHash)> {
    match known {
        FileHash::Blake3(_) => hashed(fs, path, blake3::Hasher::new()),
        FileHash::Sha256(_) => hashed(fs, path, Sha256::new()),
    }
}

fn hashed(fs: &dyn Fs, path: &Path, mut hash: impl Making) -> io::Result<(u64, FileHash)> {
    let mut file = fs.open(path)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => return Ok((bytes, hash.made())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&chunk[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealFs, write};

    #[test]
    fn both_hashes_are_those_of_their_standards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        write(&path, b"abc").unwrap();
        let blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let known = [FileHash::Blake3(blake3.to_owned()), FileHash::Sha256(sha256.to_owned())];
        for known in known {
            assert_eq!(like(&known, &RealFs, &path).unwrap(), (3, known));
        }
        assert!(matches!(of_file(&RealFs, &path).unwrap(), (3, FileHash::Blake3(_))));
    }
}
