//! A large new file that goes to the disk past the page cache.
//!
//! The cache would take a second copy of the file's size from what programs use, page by page, and
//! the kernel's time to write it back beside them. Where the file system does not take such writes,
//! it is an ordinary file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::FsFile;

/// What is written at a time: enough for a disk to be at its full speed.
const BUFFER_BYTES: usize = 8 << 20;
/// What addresses, lengths and places in the file are multiples of; no disk in use asks for more.
const ALIGNMENT: usize = 4096;

/// Bytes gather in an aligned buffer and are written when it is full; those that lie as a disk wants
/// them are written from there. What is left at the end is written as to any other file.
pub(crate) struct DirectFile {
    file: File,
    buffer: Vec<u8>,
    /// Where the aligned part of the buffer begins.
    start: usize,
    filled: usize,
}

impl DirectFile {
    /// Creates the file, which must not exist.
    pub(crate) fn create_new(path: &Path, mode: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        let file = match direct {
            // Some file systems refuse the flag, and some of those after they have made the file.
            Err(error) if is_invalid(&error) => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => options.open(path)?,
            },
            opened => opened?,
        };
        let buffer = vec![0; BUFFER_BYTES + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Ok(Self { file, buffer, start, filled: 0 })
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        let mut rest = &self.buffer[self.start..self.start + self.filled];
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Refused at the first write, or after a part that ends between two blocks.
                Err(error) if is_invalid(&error) && self.is_direct()? => self.leave_direct()?,
                Err(error) => return Err(error),
            }
        }
        self.filled = 0;
        Ok(())
    }

    fn is_direct(&self) -> io::Result<bool> {
        Ok(fcntl_getfl(&self.file)?.contains(OFlags::DIRECT))
    }

    /// From here on the file is an ordinary one.
    fn leave_direct(&self) -> io::Result<()> {
        let flags = fcntl_getfl(&self.file)?;
        Ok(fcntl_setfl(&self.file, flags - OFlags::DIRECT)?)
    }
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

impl Write for DirectFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == BUFFER_BYTES {
            self.write_buffer()?;
        }
        let whole = bytes.len().min(BUFFER_BYTES) / ALIGNMENT * ALIGNMENT;
        if self.filled == 0 && whole > 0 && bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            match self.file.write(&bytes[..whole]) {
                Err(error) if is_invalid(&error) && self.is_direct()? => self.leave_direct()?,
                written => return written,
            }
        }
        let count = bytes.len().min(BUFFER_BYTES - self.filled);
        let place = self.start + self.filled;
        self.buffer[place..place + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        Ok(count)
    }

    /// What is in the buffer may end anywhere: it and what comes after it is written as to any other
    /// file.
    fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.leave_direct()?;
            self.write_buffer()?;
        }
        Ok(())
    }
}

impl FsFile for DirectFile {
    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_all()
    }

    fn clone_bytes_of(&mut self, source: &File) -> io::Result<()> {
        FsFile::clone_bytes_of(&mut self.file, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that repeat at no block.
    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u64)
            .map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect()
    }

    fn written_in(folder: &Path, count: usize, piece: usize) {
        let path = folder.join(format!("{count}-{piece}"));
        let bytes = bytes(count);
        let mut file = DirectFile::create_new(&path, 0o600).unwrap();
        for piece in bytes.chunks(piece) {
            file.write_all(piece).unwrap();
        }
        file.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "{count} bytes in pieces of {piece}");
        let again = DirectFile::create_new(&path, 0o600).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(std::fs::read(&path).unwrap() == bytes, "it stays as it was");
    }

    #[test]
    fn files_of_any_size_in_pieces_of_any_size() {
        // A disk, and memory, where the flag may be refused.
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").ok();
        for folder in [Some(disk), memory].iter().flatten() {
            for count in [0, 1, 4095, 4096, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES - 7] {
                written_in(folder.path(), count, 1 << 20);
                written_in(folder.path(), count, BUFFER_BYTES + 4097);
            }
            written_in(folder.path(), 100_000, 13);
        }
    }

    #[test]
    fn bytes_that_lie_as_a_disk_wants_them() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let count = 2 * BUFFER_BYTES + 3 * ALIGNMENT + 5;
        let mut room = vec![0; ALIGNMENT];
        let begin = room.as_ptr().align_offset(ALIGNMENT);
        room.resize(begin, 0);
        room.extend(bytes(count));
        for (name, begin) in [("aligned", begin), ("not", begin + 1)] {
            let path = folder.path().join(name);
            let mut file = DirectFile::create_new(&path, 0o600).unwrap();
            file.write_all(&room[begin..]).unwrap();
            file.sync().unwrap();
            assert!(std::fs::read(&path).unwrap() == room[begin..], "{name}");
        }
    }

    #[test]
    fn bytes_after_a_flush_follow_those_before() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("file");
        let bytes = bytes(2 * BUFFER_BYTES);
        let mut file = DirectFile::create_new(&path, 0o600).unwrap();
        let (before, after) = bytes.split_at(BUFFER_BYTES + 100);
        file.write_all(before).unwrap();
        file.flush().unwrap();
        file.write_all(after).unwrap();
        file.sync().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
