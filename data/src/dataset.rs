//! Files of records as rows of tokens.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chandler_durable::{RealFs, create_folder_all};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::cache::{self, Cache, CacheWriter, Report, TOKEN_BYTES};
use crate::error::{BadLine, DataError};
use crate::example::Example;
use crate::files::open_regular;
use crate::lines::{Line, Lines};
use crate::options::{DataOptions, OnBadLine, Packing};
use crate::packing::{Piece, pack};
use crate::pipeline::TextPipeline;
use crate::row::{IGNORE_INDEX, Row};
use crate::stats::LengthStats;
use crate::tokenizer::hexadecimal;

/// Bad lines that an error or a report spells out.
const BAD_LINES_SHOWN: usize = 20;
/// A source is a file's number above these bits, and a line's below.
const LINE_BITS: u32 = 40;
/// Changes when the same text would give other tokens.
const FORMAT: u32 = 2;

/// How far the tokenizing of files has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildProgress {
    /// Records done, those that cannot be used included.
    pub records: u64,
    /// Bytes read, over all files.
    pub bytes: u64,
    /// The number of the file that is being read, from 0.
    pub file: usize,
    /// The first and the last line of those that are in hand, from 1.
    pub lines: (u64, u64),
}

/// Rows of tokens on disk, of which memory holds only where they are.
#[derive(Debug, Clone)]
pub struct Dataset {
    store: Arc<Store>,
    rows: Vec<Vec<Piece>>,
    packed: bool,
}

#[derive(Debug)]
struct Store {
    file: File,
    /// Where each document begins.
    offsets: Vec<u64>,
    lengths: Vec<u32>,
    sources: Vec<u64>,
    files: Vec<PathBuf>,
    report: Report,
    cache_file: PathBuf,
    /// Of the tokens.
    digest: [u8; 32],
    /// Of the files; empty where only the tokens were opened.
    hashes: Vec<String>,
}

impl Dataset {
    /// The rows of `files`, tokenized now or read from `cache_folder`, one document each.
    ///
    /// A cache file is found by the hashes of the files, the tokenizer, the template and the
    /// options; one that is damaged is made anew. `progress` is told of every record and of every
    /// stretch of lines, from any thread.
    pub fn open(
        files: &[PathBuf],
        pipeline: &TextPipeline,
        options: &DataOptions,
        cache_folder: &Path,
        progress: &(dyn Fn(BuildProgress) + Sync),
    ) -> Result<Self, DataError> {
        create_folder_all(&RealFs, cache_folder)?;
        let mut hashes = vec![];
        for path in files {
            hashes.push(hash_of(path, &|| progress(BuildProgress::default()))?);
        }
        let path = cache_folder.join(format!("{}.tokens", key(&hashes, pipeline, options)));
        if let Some(cache) = cache::open(&path) {
            return Ok(Self::of(cache, files, &path, hashes));
        }
        cache::write(&RealFs, &path, |writer| {
            let (report, done) = (Report::default(), AtomicU64::new(0));
            let builder = Builder { pipeline, options, writer, progress, report, done, bytes: 0 };
            builder.build(files, &hashes)
        })?;
        let cache = cache::open(&path).ok_or_else(|| DataError::BadCache { path: path.clone() })?;
        Ok(Self::of(cache, files, &path, hashes))
    }

    /// The rows that [`open`](Self::open) made of `files` and keeps in `cache_file`; reads no text.
    pub fn reopen(cache_file: &Path, files: &[PathBuf]) -> Result<Self, DataError> {
        let bad = || DataError::BadCache { path: cache_file.to_owned() };
        Ok(Self::of(cache::open(cache_file).ok_or_else(bad)?, files, cache_file, vec![]))
    }

    /// Where the tokens are kept.
    pub fn cache_file(&self) -> &Path {
        &self.store.cache_file
    }

    /// SHA-256 of each file as it was read, in hexadecimal; none where only the tokens were opened.
    pub fn file_hashes(&self) -> &[String] {
        &self.store.hashes
    }

    fn of(cache: Cache, files: &[PathBuf], cache_file: &Path, hashes: Vec<String>) -> Self {
        let Cache { file, lengths, sources, report, digest } = cache;
        let mut end = 0;
        let offsets = lengths
            .iter()
            .map(|length| {
                let start = end;
                end += u64::from(*length) * TOKEN_BYTES;
                start
            })
            .collect();
        let whole = |(document, len): (usize, &u32)| {
            vec![Piece { document: document as u32, start: 0, len: *len }]
        };
        let rows = lengths.iter().enumerate().map(whole).collect();
        let (files, cache_file) = (files.to_vec(), cache_file.to_owned());
        let store = Arc::new(Store {
            file,
            offsets,
            lengths,
            sources,
            files,
            report,
            cache_file,
            digest,
            hashes,
        });
        Self { store, rows, packed: false }
    }

    /// Some of the rows, in the order given.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let rows = rows.iter().map(|row| self.rows[*row].clone()).collect();
        Self { store: Arc::clone(&self.store), rows, packed: self.packed }
    }

    /// The documents of these rows laid into rows of at most `max_length` tokens.
    #[must_use]
    pub fn packed(&self, packing: Packing, max_length: usize) -> Self {
        let pieces: Vec<Piece> = self.rows.iter().flatten().copied().collect();
        let lengths: Vec<u32> = pieces.iter().map(|piece| piece.len).collect();
        let mut rows = pack(&lengths, max_length as u32, packing);
        for piece in rows.iter_mut().flatten() {
            piece.document = pieces[piece.document as usize].document;
        }
        Self { store: Arc::clone(&self.store), rows, packed: true }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of a row.
    pub fn row_length(&self, index: usize) -> usize {
        self.rows[index].iter().map(|piece| piece.len as usize).sum()
    }

    /// SHA-256, in hexadecimal, of the tokens and of how these rows are laid out of them: the same
    /// for the same rows alone, whatever the files are called.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.store.digest);
        hash.update([u8::from(self.packed)]);
        for row in &self.rows {
            hash.update((row.len() as u32).to_le_bytes());
            for piece in row {
                hash.update(
                    [piece.document, piece.start, piece.len].map(u32::to_le_bytes).concat(),
                );
            }
        }
        hexadecimal(&hash.finalize())
    }

    /// Reads a row.
    pub fn row(&self, index: usize) -> io::Result<Row> {
        let mut row = Row::default();
        for piece in &self.rows[index] {
            let (ids, trained) = self.store.read(*piece)?;
            let label = |(id, trained): (&u32, &u8)| {
                if *trained == 1 { i64::from(*id) } else { IGNORE_INDEX }
            };
            let first = row.labels.len();
            row.labels.extend(ids.iter().zip(&trained).map(label));
            if let (true, Some(label)) = (self.packed, row.labels.get_mut(first)) {
                *label = IGNORE_INDEX;
            }
            row.input_ids.extend(ids);
            row.seq_lengths.push(piece.len);
            row.examples += 1;
        }
        Ok(row)
    }

    /// The file and the line, from 1, that a row's first document comes from.
    pub fn source(&self, index: usize) -> Option<(&Path, u64)> {
        let piece = self.rows.get(index)?.first()?;
        let source = *self.store.sources.get(piece.document as usize)?;
        let file = self.store.files.get((source >> LINE_BITS) as usize)?;
        Some((file, source & ((1 << LINE_BITS) - 1)))
    }

    /// The JSON lines that the first documents of these rows come from; longer lines than
    /// `max_line_bytes` are passed over as they were when the rows were made. `alive` is called
    /// now and then.
    pub fn source_lines(
        &self,
        rows: &[usize],
        max_line_bytes: usize,
        alive: &dyn Fn(),
    ) -> Result<Vec<String>, DataError> {
        let mut found = vec![String::new(); rows.len()];
        for path in &self.store.files {
            let wanted: Vec<(u64, usize)> = (0..rows.len())
                .filter_map(|at| match self.source(rows[at]) {
                    Some((file, line)) if file == path => Some((line, at)),
                    _ => None,
                })
                .collect();
            let Some(last) = wanted.iter().map(|(line, _)| *line).max() else { continue };
            let mut lines = Lines::open(path, max_line_bytes)?;
            while let Some(batch) = lines.take_batch()? {
                alive();
                for line in batch {
                    let Line::Text(number, text) = line else { continue };
                    for (_, at) in wanted.iter().filter(|(line, _)| *line == number) {
                        found[*at].clone_from(&text);
                    }
                }
                if lines.number() >= last {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Lengths and counts over all records of the files, whatever was selected since.
    pub fn stats(&self) -> &LengthStats {
        &self.store.report.stats
    }

    /// The first of the lines that were left out.
    pub fn bad_lines(&self) -> &[BadLine] {
        &self.store.report.bad_lines
    }
}

impl Store {
    fn read(&self, piece: Piece) -> io::Result<(Vec<u32>, Vec<u8>)> {
        let document = piece.document as usize;
        let (offset, length) = (self.offsets[document], u64::from(self.lengths[document]));
        let mut bytes = vec![0; piece.len as usize * 4];
        self.file.read_exact_at(&mut bytes, offset + u64::from(piece.start) * 4)?;
        let id = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let ids = bytes.chunks_exact(4).map(id).collect();
        let mut trained = vec![0; piece.len as usize];
        self.file.read_exact_at(&mut trained, offset + length * 4 + u64::from(piece.start))?;
        Ok((ids, trained))
    }
}

/// Tokenizes files into a cache file.
struct Builder<'a, 'w> {
    pipeline: &'a TextPipeline,
    options: &'a DataOptions,
    writer: &'a mut CacheWriter<'w>,
    progress: &'a (dyn Fn(BuildProgress) + Sync),
    report: Report,
    /// Records done.
    done: AtomicU64,
    /// Of the files before the one that is being read.
    bytes: u64,
}

impl Builder<'_, '_> {
    fn build(mut self, files: &[PathBuf], hashes: &[String]) -> Result<Report, DataError> {
        let mut lengths = vec![];
        for (index, path) in files.iter().enumerate() {
            let before = lengths.len() as u64 + self.report.stats.bad_lines;
            if self.file(index, path, &mut lengths)? != hashes[index] {
                return Err(DataError::Changed { path: path.clone() });
            }
            if lengths.len() as u64 + self.report.stats.bad_lines == before {
                return Err(DataError::Empty { path: path.clone() });
            }
        }
        let bad = self.report.stats.bad_lines as usize;
        if bad > 0 && (self.options.on_bad_line == OnBadLine::Fail || lengths.is_empty()) {
            return Err(DataError::BadLines { lines: self.report.bad_lines, count: bad });
        }
        if self.report.stats.trained_tokens == 0 {
            let max_length = self.options.max_length;
            return Err(DataError::NothingToLearn { records: lengths.len(), max_length });
        }
        self.report.stats.records = lengths.len() as u64;
        self.report.stats.set_percentiles(&mut lengths);
        Ok(self.report)
    }

    /// Tokenizes a file and says what its hash is.
    fn file(
        &mut self,
        index: usize,
        path: &Path,
        lengths: &mut Vec<u32>,
    ) -> Result<String, DataError> {
        let mut lines = Lines::open(path, self.options.max_line_bytes)?;
        let mut first = 1;
        while let Some(batch) = lines.take_batch()? {
            let bytes = self.bytes + lines.consumed();
            let now =
                BuildProgress { records: 0, bytes, file: index, lines: (first, lines.number()) };
            first = lines.number() + 1;
            for made in self.examples(batch, path, now) {
                match made {
                    Ok((number, example)) => {
                        lengths.push(example.input_ids.len() as u32);
                        self.keep(example, ((index as u64) << LINE_BITS) | number)?;
                    }
                    Err(bad) => self.report_bad(bad),
                }
            }
        }
        self.bytes += lines.consumed();
        let now = BuildProgress {
            records: self.done.load(Ordering::Relaxed),
            bytes: self.bytes,
            file: index,
            lines: (first, lines.number()),
        };
        lines.into_hash(&|| (self.progress)(now))
    }

    /// Tokenizes lines side by side.
    fn examples(
        &self,
        lines: Vec<Line>,
        path: &Path,
        now: BuildProgress,
    ) -> Vec<Result<(u64, Example), BadLine>> {
        let (pipeline, options, done) = (self.pipeline, self.options, &self.done);
        let tell = |records| (self.progress)(BuildProgress { records, ..now });
        tell(done.load(Ordering::Relaxed));
        let example = |line| match line {
            Line::Bad(bad) => Err(bad),
            Line::Text(number, text) => match pipeline.example(&text, options) {
                Ok(example) => Ok((number, example)),
                Err(error) => {
                    let (file, reason) = (path.to_owned(), error.to_string());
                    Err(BadLine { file, line: number, reason })
                }
            },
        };
        let examples = lines.into_par_iter().map(|line| {
            let made = example(line);
            tell(done.fetch_add(1, Ordering::Relaxed) + 1);
            made
        });
        examples.collect()
    }

    fn keep(&mut self, mut example: Example, source: u64) -> Result<(), DataError> {
        let stats = &mut self.report.stats;
        let packing = self.options.packing;
        let length = example.input_ids.len();
        if packing == Some(Packing::Wrapped) {
            stats.cut += u64::from(length > self.options.max_length);
        } else {
            stats.cut += u64::from(example.truncate(self.options.max_length));
        }
        // TRL drops such a row, but packs it where rows are packed.
        if packing.is_none() && !example.is_trained() {
            stats.untrained += 1;
            return Ok(());
        }
        stats.tokens += example.input_ids.len() as u64;
        stats.trained_tokens += example.trained_ids().count() as u64;
        self.writer.push(&example, source).map_err(|source| DataError::Keep { source })
    }

    fn report_bad(&mut self, bad: BadLine) {
        self.report.stats.bad_lines += 1;
        if self.report.bad_lines.len() < BAD_LINES_SHOWN {
            self.report.bad_lines.push(bad);
        }
    }
}

fn key(hashes: &[String], pipeline: &TextPipeline, options: &DataOptions) -> String {
    // Packing happens after the cache, except that it decides what is cut and dropped.
    let key = json!({
        "format": FORMAT,
        "files": hashes,
        "tokenizer": pipeline.tokenizer().hash(),
        "special_tokens": pipeline.tokenizer().special_tokens(),
        "template": pipeline.template().map(crate::ChatTemplate::source),
        "options": options,
    });
    hexadecimal(&Sha256::digest(key.to_string().as_bytes()))
}

/// SHA-256 of a file, in hexadecimal.
pub fn file_sha256(path: &Path) -> Result<String, DataError> {
    hash_of(path, &|| ())
}

/// SHA-256 of a file; `alive` is told of every mebibyte.
fn hash_of(path: &Path, alive: &dyn Fn()) -> Result<String, DataError> {
    let read = |source| DataError::Read { path: path.to_owned(), source };
    let mut file = open_regular(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).map_err(read)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            some => hash.update(&chunk[..some]),
        }
        alive();
    }
}
