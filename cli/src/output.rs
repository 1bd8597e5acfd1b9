//! Standard output: what a command was asked for, and nothing else.
//!
//! Text is for people: what would act on a terminal is spelt out. JSON is for programs: its values
//! are exact.

use std::io::{self, IsTerminal, Write};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::colour_is_wanted;
use crate::visible::{visible, visible_json, visible_painted};

/// Prints text for people, with control characters made visible. A reader that went away, as `head` does, is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    print_while_read(text).map(drop)
}

/// As [`print`], and says whether somebody still reads.
pub(crate) fn print_while_read(text: &str) -> Result<bool, Failure> {
    let painted = colour_is_wanted(io::stdout().is_terminal());
    write(&if painted { visible_painted(text) } else { visible(text) })
}

fn write(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            let error = anyhow::Error::new(error).context("cannot write to standard output");
            Err(Failure::new(Exit::Error, error, None))
        }
    }
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Error, error, None))?;
    text.push('\n');
    write(&visible_json(&text)).map(drop)
}

/// Prints a value as JSON on one line.
pub fn print_json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    print_json_line_while_read(value).map(drop)
}

/// As [`print_json_line`], and says whether somebody still reads.
pub(crate) fn print_json_line_while_read(value: &impl serde::Serialize) -> Result<bool, Failure> {
    let text =
        serde_json::to_string(value).map_err(|error| Failure::new(Exit::Error, error, None))?;
    write(&format!("{}\n", visible_json(&text)))
}

/// Columns, each as wide as its widest cell; numbers of columns may differ from row to row.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    rows.iter()
        .map(|row| {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(table(&[row(&["a", "bb"]), row(&["ccc", "d", "e"])]), "a    bb\nccc  d   e\n");
        assert_eq!(table(&[]), "");
    }
}
