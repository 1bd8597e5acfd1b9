//! What `data preview` shows, made in the child.

use std::path::Path;

use chandler_data::{
    BadLine, BuildProgress, DataError, DataOptions, Example, OnBadLine, SourceError, SourceLines,
    TextPipeline,
};

use super::child::Beats;
use super::protocol::PreviewRow;

/// Hands the first `limit` rows of a file to `send`.
pub(super) fn rows(
    pipeline: &TextPipeline,
    file: &Path,
    options: &DataOptions,
    limit: usize,
    pieces: bool,
    beats: &Beats,
    send: &dyn Fn(PreviewRow),
) -> Result<(), DataError> {
    let mut shown = 0;
    for line in SourceLines::open(file, options.max_line_bytes)? {
        if shown == limit {
            break;
        }
        let made = match line {
            Err(SourceError::File(error)) => return Err(error),
            Err(SourceError::Line(bad)) => {
                beats.beat(BuildProgress {
                    lines: (bad.line, bad.line),
                    ..BuildProgress::default()
                });
                Err(bad)
            }
            Ok((number, text)) => {
                beats.beat(BuildProgress { lines: (number, number), ..BuildProgress::default() });
                pipeline.example(&text, options).map(|example| (number, example)).map_err(|error| {
                    BadLine { file: file.to_owned(), line: number, reason: error.to_string() }
                })
            }
        };
        match made {
            Ok((line, example)) => {
                shown += 1;
                send(row(pipeline, line, example, options.max_length, pieces)?);
            }
            Err(bad) if options.on_bad_line == OnBadLine::Skip => tracing::warn!("{bad}"),
            Err(bad) => return Err(DataError::BadLines { lines: vec![bad], count: 1 }),
        }
    }
    Ok(())
}

fn row(
    pipeline: &TextPipeline,
    line: u64,
    mut example: Example,
    max_length: usize,
    pieces: bool,
) -> Result<PreviewRow, DataError> {
    let cut = example.truncate(max_length);
    let pieces = if pieces { stretches(pipeline, &example)? } else { vec![] };
    let labels = example.labels();
    Ok(PreviewRow { line, cut, text: example.text, input_ids: example.input_ids, labels, pieces })
}

/// A row's text by stretches of trained and untrained tokens.
fn stretches(pipeline: &TextPipeline, example: &Example) -> Result<Vec<(String, bool)>, DataError> {
    let mut pieces = vec![];
    let mut start = 0;
    while start < example.input_ids.len() {
        let trained = example.trained[start];
        let same = example.trained[start..].iter().take_while(|t| **t == trained);
        let end = start + same.count();
        let text = pipeline.tokenizer().decode(&example.input_ids[start..end], false)?;
        pieces.push((text, trained));
        start = end;
    }
    Ok(pieces)
}
