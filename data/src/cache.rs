//! The file that tokens are kept in, so that a file of text is tokenized once.
//!
//! Documents (4 bytes a token for its id, then 1 byte a token for whether it carries loss), then
//! for each document its length (u32) and its source (u64), then the rest as JSON, then a trailer
//! with the sizes and a SHA-256 over everything before it. All numbers are little-endian.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use chandler_durable::{Fs, write_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{BadLine, DataError};
use crate::example::Example;
use crate::stats::LengthStats;

const MAGIC: &[u8; 8] = b"CHNDTOK1";
const TRAILER_BYTES: u64 = 8 + 8 + 32 + 8;
/// Of one token.
pub(crate) const TOKEN_BYTES: u64 = 5;

/// What a cache file says beside the tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) stats: LengthStats,
    /// The first lines that were left out.
    pub(crate) bad_lines: Vec<BadLine>,
}

/// An opened cache file.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) file: File,
    pub(crate) lengths: Vec<u32>,
    pub(crate) sources: Vec<u64>,
    pub(crate) report: Report,
    /// SHA-256 of the tokens, of which of them carry loss, and of the lengths.
    pub(crate) digest: [u8; 32],
}

/// Writes a cache file; `fill` hands every document to the writer and ends with the report.
pub(crate) fn write(
    fs: &dyn Fs,
    path: &Path,
    fill: impl FnOnce(&mut CacheWriter) -> Result<Report, DataError>,
) -> Result<(), DataError> {
    let mut failure = None;
    let written = write_with(fs, path, |file| {
        let mut writer =
            CacheWriter { file, hash: Sha256::new(), lengths: vec![], sources: vec![] };
        match fill(&mut writer) {
            Ok(report) => writer.finish(&report),
            Err(error) => {
                let stop = io::Error::other(error.to_string());
                failure = Some(error);
                Err(stop)
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}

pub(crate) struct CacheWriter<'a> {
    file: &'a mut dyn Write,
    hash: Sha256,
    lengths: Vec<u32>,
    sources: Vec<u64>,
}

impl CacheWriter<'_> {
    /// Appends a document that came from line `source`.
    pub(crate) fn push(&mut self, example: &Example, source: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(example.input_ids.len() * TOKEN_BYTES as usize);
        bytes.extend(example.input_ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(example.trained.iter().map(|trained| u8::from(*trained)));
        self.put(&bytes)?;
        self.lengths.push(example.input_ids.len() as u32);
        self.sources.push(source);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn finish(mut self, report: &Report) -> io::Result<()> {
        let (lengths, sources) =
            (std::mem::take(&mut self.lengths), std::mem::take(&mut self.sources));
        for length in &lengths {
            self.put(&length.to_le_bytes())?;
        }
        for source in &sources {
            self.put(&source.to_le_bytes())?;
        }
        let report = serde_json::to_vec(report)?;
        self.put(&report)?;
        self.put(&(lengths.len() as u64).to_le_bytes())?;
        self.put(&(report.len() as u64).to_le_bytes())?;
        self.file.write_all(&self.hash.finalize())?;
        self.file.write_all(MAGIC)
    }
}

/// Opens a cache file; `None` if there is none, or none that is whole.
pub(crate) fn open(path: &Path) -> Option<Cache> {
    let cache = File::open(path).and_then(read);
    match cache {
        Ok(cache) => Some(cache),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "tokens are made anew: the cache is damaged");
            None
        }
    }
}

fn read(mut file: File) -> io::Result<Cache> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let total = file.metadata()?.len();
    let hashed = total.checked_sub(TRAILER_BYTES - 16).ok_or_else(|| damaged("too short"))?;
    let mut sizes = [0; 16];
    file.seek(SeekFrom::Start(hashed - 16))?;
    file.read_exact(&mut sizes)?;
    let size = |at: usize| sizes[at..at + 8].iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b));
    let (count, report_bytes) = (size(0), size(8));
    let tail = count.checked_mul(12).and_then(|n| n.checked_add(report_bytes.checked_add(16)?));
    let start = tail.and_then(|tail| hashed.checked_sub(tail)).ok_or_else(|| damaged("sizes"))?;
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut go_on = |hash: &mut Sha256, bytes: u64| {
        io::copy(&mut Read::by_ref(&mut file).take(bytes), &mut HashWriter(hash))
    };
    go_on(&mut hash, start + count * 4)?;
    let digest = hash.clone().finalize().into();
    go_on(&mut hash, hashed - start - count * 4)?;
    let mut end = [0; 40];
    file.read_exact(&mut end)?;
    if &end[32..] != MAGIC || end[..32] != hash.finalize()[..] {
        return Err(damaged("its bytes are not those that were written"));
    }
    file.seek(SeekFrom::Start(start))?;
    let mut tail = vec![0; (count * 12 + report_bytes) as usize];
    file.read_exact(&mut tail)?;
    let (lengths, rest) = tail.split_at(count as usize * 4);
    let (sources, report) = rest.split_at(count as usize * 8);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b));
    let lengths: Vec<u32> = lengths.chunks_exact(4).map(|bytes| number(bytes) as u32).collect();
    let sources = sources.chunks_exact(8).map(number).collect();
    let report = serde_json::from_slice(report)?;
    if lengths.iter().map(|length| u64::from(*length)).sum::<u64>() * TOKEN_BYTES != start {
        return Err(damaged("its lengths do not add up"));
    }
    Ok(Cache { file, lengths, sources, report, digest })
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
