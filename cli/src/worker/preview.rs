//! What `data preview` shows, made in the child.

use std::path::Path;

use chandler_data::{
    BadLine, BuildProgress, DataError, DataOptions, Example, OnBadLine, SourceError, SourceLines,
    TextPipeline,
};

use super::child::Beats;
use super::protocol::PreviewRow;

/// How much is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) rows: usize,
    /// Whether the trained stretches are wanted as text.
    pub(super) pieces: bool,
    /// Bytes of a row's text.
    pub(super) most_text: Option<usize>,
}

/// Hands the first rows of a file to `send`.
pub(super) fn rows(
    pipeline: &TextPipeline,
    file: &Path,
    options: &DataOptions,
    wanted: Wanted,
    beats: &Beats,
    send: &dyn Fn(PreviewRow),
) -> Result<(), DataError> {
    let mut shown = 0;
    for line in SourceLines::open(file, options.max_line_bytes)? {
        if shown == wanted.rows {
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
                send(row(pipeline, line, example, options.max_length, wanted)?);
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
    wanted: Wanted,
) -> Result<PreviewRow, DataError> {
    let cut = example.truncate(max_length);
    let pieces = if wanted.pieces { stretches(pipeline, &example)? } else { vec![] };
    let labels = example.labels();
    let mut row = PreviewRow {
        line,
        cut,
        text: example.text,
        input_ids: example.input_ids,
        labels,
        pieces,
        shortened: false,
    };
    if let Some(most) = wanted.most_text {
        shorten(&mut row, most);
    }
    Ok(row)
}

/// Leaves `most` bytes of the text, and of the stretches.
fn shorten(row: &mut PreviewRow, most: usize) {
    let mut left = most;
    for (piece, _) in &mut row.pieces {
        row.shortened |= cut_off(piece, left);
        left = if row.shortened { 0 } else { left - piece.len() };
    }
    row.pieces.retain(|(piece, _)| !piece.is_empty());
    row.shortened |= cut_off(&mut row.text, most);
}

/// Cuts a text to so many bytes, and whether anything was lost.
fn cut_off(text: &mut String, most: usize) -> bool {
    let is_longer = text.len() > most;
    text.truncate(text.floor_char_boundary(most));
    is_longer
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_cut_between_characters() {
        let pieces =
            vec![("aä".to_owned(), false), ("öb".to_owned(), true), ("c".to_owned(), true)];
        let row = PreviewRow {
            line: 1,
            cut: false,
            text: "aäöbc".to_owned(),
            input_ids: vec![],
            labels: vec![],
            pieces,
            shortened: false,
        };
        for (most, expected) in [(9, "aäöbc"), (7, "aäöbc"), (6, "aäöb"), (4, "aä"), (0, "")]
        {
            let mut row = row.clone();
            shorten(&mut row, most);
            let together: String = row.pieces.iter().map(|(piece, _)| piece.as_str()).collect();
            assert_eq!((together.as_str(), row.text.as_str()), (expected, expected), "{most}");
            assert_eq!(row.shortened, expected.len() < 7, "{most}");
        }
    }
}
