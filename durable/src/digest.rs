//! Size and SHA-256 of a file, read through an [`Fs`].

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::Fs;

const CHUNK_BYTES: usize = 1 << 20;

/// Bytes and hexadecimal SHA-256 of `path`.
pub(crate) fn of_file(fs: &dyn Fs, path: &Path) -> io::Result<(u64, String)> {
    let mut file = fs.open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let read = match file.read(&mut chunk) {
            Ok(0) => return Ok((bytes, hexadecimal(&hash.finalize()))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&chunk[..read]);
        bytes += read as u64;
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
