//! The log files of a state directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A log file that is open, and how long it was when it was opened.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Device and inode: another file may come to have its name.
    pub(super) id: (u64, u64),
    pub(super) len: u64,
}

impl LogFile {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        Ok(Self { path, file, id: (metadata.dev(), metadata.ino()), len: metadata.len() })
    }

    /// Up to `bytes` from `offset`; fewer where the file ends before.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        let mut read = 0;
        while read < bytes {
            match self.file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(read);
        Ok(buffer)
    }
}

/// The log files in the order in which they were written to; none where there is no folder.
pub(super) fn list(folder: &Path) -> io::Result<Vec<LogFile>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with("chandler") && name.ends_with(".jsonl");
        if !is_ours || !entry.file_type()?.is_file() {
            continue;
        }
        match LogFile::open(entry.path()) {
            // Removed by the rotation meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => {
                let file = file?;
                files.push((file.file.metadata()?.modified()?, file));
            }
        }
    }
    files.sort_by(|(at, file), (other_at, other)| (at, &file.path).cmp(&(other_at, &other.path)));
    Ok(files.into_iter().map(|(_, file)| file).collect())
}
