//! The threads at a program's three pipes. None of them is waited for: each ends with its pipe.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use super::LAST_WORDS_BYTES;

/// What came from a program.
pub(super) enum Heard {
    /// A line, or what came before its output ended.
    Line(Vec<u8>),
    /// More than a line may have.
    TooLong,
    /// Nothing, because the pipe failed.
    Failed(io::Error),
}

/// Lines that wait to be looked at; after these, the program waits.
const REPLIES_WAITING: usize = 4;

/// The ends that are left to talk through: questions in, replies out.
pub(super) type Ends = (SyncSender<Vec<u8>>, Receiver<Heard>);

/// Sets threads at the pipes of a child, which must have all three.
pub(super) fn connect(
    child: &mut Child,
    reply_bytes: usize,
    last_words: &Arc<Mutex<VecDeque<u8>>>,
) -> io::Result<Ends> {
    let missing = || io::Error::other("one of its pipes is missing");
    let input = child.stdin.take().ok_or_else(missing)?;
    let output = child.stdout.take().ok_or_else(missing)?;
    let errors = child.stderr.take().ok_or_else(missing)?;
    let (questions, to_ask) = sync_channel(1);
    let (heard, replies) = sync_channel(REPLIES_WAITING);
    let last_words = Arc::clone(last_words);
    let thread = |name: &str| Builder::new().name(format!("scorer {name}"));
    thread("input").spawn(move || ask(input, &to_ask))?;
    thread("output").spawn(move || listen(output, reply_bytes, &heard))?;
    thread("errors").spawn(move || keep_the_end(errors, &last_words))?;
    Ok((questions, replies))
}

/// Writes each question, until there are no more or nobody reads them.
fn ask(mut input: ChildStdin, questions: &Receiver<Vec<u8>>) {
    for question in questions {
        if input.write_all(&question).and_then(|()| input.flush()).is_err() {
            return;
        }
    }
}

fn listen(output: ChildStdout, reply_bytes: usize, to: &SyncSender<Heard>) {
    let mut output = BufReader::new(output);
    let most = reply_bytes as u64 + 1;
    loop {
        let mut line = vec![];
        let heard = match output.by_ref().take(most).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) if line.len() > reply_bytes && line.last() != Some(&b'\n') => Heard::TooLong,
            Ok(_) => Heard::Line(line),
            Err(error) => Heard::Failed(error),
        };
        let goes_on = matches!(heard, Heard::Line(_));
        if to.send(heard).is_err() || !goes_on {
            return;
        }
    }
}

fn keep_the_end(mut errors: ChildStderr, words: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = errors.read(&mut buffer) {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend(&buffer[..read]);
        let over = words.len().saturating_sub(LAST_WORDS_BYTES);
        words.drain(..over);
    }
}
