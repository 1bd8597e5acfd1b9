//! One client of the control socket: lines in, lines out, each within its bounds.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::protocol::{Request, Response};
use super::server::Handler;

/// No request is nearly as long.
pub(super) const LONGEST_LINE_BYTES: usize = 64 * 1024;

/// How long a client may take for a line, the wait before it included, and for reading an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience(pub(super) Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_secs(5))
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    Closed,
}

/// Answers line by line until the client closes, or is too slow.
pub(super) fn converse(
    stream: &UnixStream,
    patience: Patience,
    handler: &Handler,
) -> io::Result<()> {
    let mut buffered = Vec::new();
    loop {
        match next_line(stream, patience, &mut buffered)? {
            Line::Closed => return Ok(()),
            Line::TooLong => {
                let error = format!("the request is longer than {LONGEST_LINE_BYTES} bytes");
                return answer(stream, patience, &Response::Refused { error, hint: None });
            }
            Line::Whole(line) => {
                answer(stream, patience, &response_to(&line, handler))?;
            }
        }
    }
}

fn response_to(line: &[u8], handler: &Handler) -> Response {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) => handler(request),
        Err(error) => Response::Refused {
            error: format!("the request is not understood: {error}"),
            hint: Some("client and daemon may be of different versions".to_owned()),
        },
    }
}

/// What would be answered to a line, where every command is done.
pub(crate) fn answer_text(line: &[u8]) -> serde_json::Result<String> {
    let done = |request: Request| Response::Done { message: format!("{request:?}") };
    serde_json::to_string(&response_to(line, &done))
}

/// Writes an answer, all of it before the client's time is over.
pub(super) fn answer(
    mut stream: &UnixStream,
    patience: Patience,
    response: &Response,
) -> io::Result<()> {
    let mut text = serde_json::to_string(response).map_err(io::Error::other)?;
    text.push('\n');
    let deadline = Instant::now() + patience.0;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The next line; what was read beyond it stays in `buffered`.
fn next_line(
    mut stream: &UnixStream,
    patience: Patience,
    buffered: &mut Vec<u8>,
) -> io::Result<Line> {
    let deadline = Instant::now() + patience.0;
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = buffered.iter().position(|byte| *byte == b'\n') {
            let rest = buffered.split_off(end + 1);
            return Ok(Line::Whole(std::mem::replace(buffered, rest)));
        }
        if buffered.len() > LONGEST_LINE_BYTES {
            return Ok(Line::TooLong);
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            // What was begun and is not ended by a newline is no request.
            Ok(0) => return Ok(Line::Closed),
            Ok(read) => buffered.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(request: Request) -> Response {
        Response::Done { message: format!("{request:?}") }
    }

    /// Runs a conversation with what `client` does at the other end.
    fn with<T: Send>(
        patience: Duration,
        client: impl FnOnce(&UnixStream) -> T + Send,
    ) -> (io::Result<()>, T) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let client = scope.spawn(move || client(&theirs));
            let ended = converse(&ours, Patience(patience), &echo);
            drop(ours);
            (ended, client.join().unwrap())
        })
    }

    #[test]
    fn a_line_that_trickles_in_is_cut_off_as_a_whole() {
        let patience = Duration::from_millis(200);
        let begin = Instant::now();
        let (ended, sent) = with(patience, |mut stream| {
            // A byte now and again, each of them well within the time.
            (0..1000)
                .take_while(|_| {
                    std::thread::sleep(patience / 10);
                    stream.write_all(b"x").is_ok()
                })
                .count()
        });
        let kind = ended.unwrap_err().kind();
        assert!(matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{kind}");
        assert!(sent < 1000 && begin.elapsed() < patience * 50, "{sent}");
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let (ended, ()) = with(Duration::from_millis(200), |mut stream| {
            while stream.write_all(b"{\"command\":\"pause\"}\n").is_ok() {}
        });
        ended.unwrap_err();
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (ended, answer) = with(Duration::from_secs(60), |mut stream| {
            let _ = stream.write_all(&vec![b'x'; LONGEST_LINE_BYTES + 5000]);
            let mut answer = vec![0; 200];
            let read = stream.read(&mut answer).unwrap();
            String::from_utf8(answer[..read].to_vec()).unwrap()
        });
        ended.unwrap();
        assert!(answer.contains("longer than 65536 bytes"), "{answer}");
    }

    #[test]
    fn lines_that_come_together_are_answered_one_by_one() {
        let (ended, answers) = with(Duration::from_secs(60), |mut stream| {
            stream.write_all(b"{\"command\":\"dance\"}\n{\"command\":\"stop\"}\n{").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            io::read_to_string(stream).unwrap()
        });
        ended.unwrap();
        let lines: Vec<&str> = answers.lines().collect();
        assert_eq!(lines.len(), 2, "{answers}");
        assert!(lines[0].contains("not understood") && lines[1].contains("Stop"), "{answers}");
    }
}
