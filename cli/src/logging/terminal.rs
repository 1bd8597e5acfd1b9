//! The terminal that log lines and the progress line share: a log line first takes the progress
//! line away, and it comes back below.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use tracing_subscriber::fmt::MakeWriter;

use super::colour::{colour_is_wanted, is_dumb};
use crate::visible::{visible, visible_json, visible_painted};

/// Standard error, with at most one progress line at its bottom. Clones are the same terminal.
#[derive(Debug, Clone)]
pub struct Terminal {
    interactive: bool,
    colour: bool,
    /// Whether the lines are JSON.
    json: bool,
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Terminal {
    /// Standard error as it is: lines that redraw themselves only on a terminal that can, colours
    /// as [`colour_is_wanted`] says.
    pub fn stderr() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let interactive = is_terminal && !is_dumb();
        let colour = colour_is_wanted(is_terminal);
        Self { interactive, colour, json: false, bar: Arc::default() }
    }

    /// The same terminal, for lines of JSON.
    pub(super) fn for_json(&self) -> Self {
        Self { json: true, ..self.clone() }
    }

    /// Whether somebody sees a line that redraws itself.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Whether colours are wanted.
    pub fn has_colour(&self) -> bool {
        self.colour
    }

    /// Prints text above the progress line.
    pub fn print(&self, text: &str) {
        let mut line = self.make_writer();
        // Writing into memory does not fail.
        let _ = line.write_all(text.as_bytes());
    }

    /// Prints a line of JSON above the progress line.
    pub fn print_json(&self, line: &str) {
        self.for_json().print(line);
    }

    /// Puts a progress line at the bottom in place of the one there, or takes that away.
    pub(super) fn show(&self, bar: Option<ProgressBar>) {
        if let Some(old) = std::mem::replace(&mut *self.bar(), bar) {
            old.finish_and_clear();
        }
    }

    /// Changes the progress line, if there is one, and says whether there was.
    pub(super) fn with_bar(&self, change: impl FnOnce(&ProgressBar)) -> bool {
        self.bar().as_ref().map(change).is_some()
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects one log line and writes it above the progress line, with nothing in it that acts on a
/// terminal.
#[derive(Debug)]
pub struct TerminalLine<'a> {
    terminal: &'a Terminal,
    text: Vec<u8>,
}

impl Write for TerminalLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TerminalLine<'_> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        let text = match self.terminal {
            Terminal { json: true, .. } => visible_json(&text),
            Terminal { colour: true, .. } => visible_painted(&text),
            _ => visible(&text),
        };
        // A terminal that is gone is no reason to end a run.
        let write = || drop(io::stderr().lock().write_all(text.as_bytes()));
        match self.terminal.bar().as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = TerminalLine<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        TerminalLine { terminal: self, text: Vec::new() }
    }
}
