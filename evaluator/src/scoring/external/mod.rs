//! A program of the user's that scores answers: a line of JSON in, a line with a score out.

use std::collections::VecDeque;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::reference::Reference;

mod error;
mod group;
mod pipes;
mod reply;

#[cfg(test)]
#[cfg(unix)]
mod tests;

pub use error::ExternalError;
pub use reply::ExternalScore;

use group::ProcessGroup;
use pipes::Heard;

/// How often the wishes of others are looked at.
const TICK: Duration = Duration::from_millis(20);
/// For how long a program that has closed its output may take to end.
const LEAVING: Duration = Duration::from_millis(500);
/// Of what it says on standard error, the end that is kept.
const LAST_WORDS_BYTES: usize = 4 << 10;

/// What a scoring program may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExternalLimits {
    /// Until the score of an answer, in seconds.
    pub seconds_per_answer: f64,
    /// In addition, until that of the first one.
    pub startup_seconds: f64,
    /// Of waiting for the program, all answers together, in seconds.
    pub total_seconds: f64,
    /// Length of a line that it says.
    pub max_reply_bytes: usize,
    /// Address space that it and each of its children may have, in MiB, where it is limited. Kept
    /// on Linux alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u64>,
}

impl Default for ExternalLimits {
    fn default() -> Self {
        Self {
            seconds_per_answer: 10.0,
            startup_seconds: 60.0,
            total_seconds: 600.0,
            max_reply_bytes: 64 << 10,
            max_memory_mib: None,
        }
    }
}

/// An answer that is to be scored, as the program is told of it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Asked<'a> {
    /// What the model was asked.
    pub prompt: &'a str,
    /// What it answered.
    pub answer: &'a str,
    /// What it should have answered, `null` where that is not known.
    pub reference: Option<&'a Reference>,
    /// The set of questions that this is one of.
    pub set: &'a str,
    /// How far the training was.
    pub step: u64,
}

/// A program that is running, and scores one answer after another.
///
/// It is started once, without a shell, in a process group of its own. For each answer it reads one
/// line from its standard input, [`Asked`] as a JSON object, and writes one to its standard output:
/// a number from 0 to 1, `null` where it has no opinion, or `{"score": …, "note": "…"}`. Its
/// input ends when no answer will follow.
///
/// Whatever ends the use of it, a panic included, kills the whole group.
pub struct ExternalScorer {
    program: String,
    limits: Limits,
    group: ProcessGroup,
    questions: Option<SyncSender<Vec<u8>>>,
    replies: Receiver<Heard>,
    last_words: Arc<Mutex<VecDeque<u8>>>,
    /// What is left of the total.
    left: Duration,
    /// Until the first answer, what it may take longer.
    startup: Duration,
    running: bool,
}

/// [`ExternalLimits`] that make sense.
struct Limits {
    per_answer: Duration,
    startup: Duration,
    total: Duration,
    reply_bytes: usize,
    memory_bytes: Option<u64>,
}

impl Limits {
    fn of(limits: &ExternalLimits) -> Result<Self, ExternalError> {
        let seconds = |limit, value: f64, least: f64| {
            let found = Duration::try_from_secs_f64(value).ok().filter(|_| value > least);
            found.ok_or(ExternalError::Limit { limit, value })
        };
        if limits.max_reply_bytes == 0 {
            return Err(ExternalError::Limit { limit: "max_reply_bytes", value: 0.0 });
        }
        if limits.max_memory_mib == Some(0) {
            return Err(ExternalError::Limit { limit: "max_memory_mib", value: 0.0 });
        }
        Ok(Self {
            per_answer: seconds("seconds_per_answer", limits.seconds_per_answer, 0.0)?,
            startup: seconds("startup_seconds", limits.startup_seconds, -1.0)?,
            total: seconds("total_seconds", limits.total_seconds, 0.0)?,
            reply_bytes: limits.max_reply_bytes,
            memory_bytes: limits.max_memory_mib.map(|mib| mib.saturating_mul(1 << 20)),
        })
    }
}

impl ExternalScorer {
    /// Starts `argv[0]` with the rest of `argv`.
    ///
    /// `configure` sees the command before it is started, and may confine it, change its folder or
    /// its environment; pipes and process group are set.
    pub fn start(
        argv: &[String],
        limits: &ExternalLimits,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self, ExternalError> {
        let limits = Limits::of(limits)?;
        let (program, arguments) = argv.split_first().ok_or(ExternalError::NoProgram)?;
        let start = |source| ExternalError::Start { program: program.clone(), source };
        let mut command = Command::new(program);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        group::own(&mut command);
        configure(&mut command);
        let mut group = ProcessGroup::of(command.spawn().map_err(start)?);
        if let Some(bytes) = limits.memory_bytes {
            group.limit_memory(bytes).map_err(start)?;
        }
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let (questions, replies) =
            pipes::connect(group.child(), limits.reply_bytes, &last_words).map_err(start)?;
        Ok(Self {
            program: program.clone(),
            left: limits.total,
            startup: limits.startup,
            limits,
            group,
            questions: Some(questions),
            replies,
            last_words,
            running: true,
        })
    }

    /// Has an answer scored. `stopped` is asked every 20 ms whether to go on.
    ///
    /// An error after which no reply can be trusted ends the program; then
    /// [`is_running`](Self::is_running) is false, and every further call is
    /// [`ExternalError::Over`].
    pub fn score(
        &mut self,
        asked: &Asked,
        stopped: &dyn Fn() -> bool,
    ) -> Result<ExternalScore, ExternalError> {
        let program = self.program.clone();
        if !self.running {
            return Err(ExternalError::Over { program });
        }
        let result = self.ask(asked).and_then(|()| self.reply(stopped));
        if result.as_ref().is_err_and(ExternalError::is_final) {
            self.end();
        }
        result
    }

    /// Whether it can score further answers.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The end of what it has said on standard error, 4 KiB at most. It may repeat answers.
    pub fn last_words(&self) -> String {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = words.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    fn ask(&mut self, asked: &Asked) -> Result<(), ExternalError> {
        let program = self.program.clone();
        match self.replies.try_recv() {
            Ok(_) => return Err(ExternalError::OutOfTurn { program }),
            Err(TryRecvError::Disconnected) => return Err(self.died()),
            Err(TryRecvError::Empty) => {}
        }
        let mut line = serde_json::to_vec(asked).map_err(|source| ExternalError::Talk {
            program: program.clone(),
            source: source.into(),
        })?;
        line.push(b'\n');
        let sent = self.questions.as_ref().map(|questions| questions.try_send(line));
        match sent {
            // Two questions wait that it has not read, and it answered the first.
            Some(Err(TrySendError::Full(_))) => Err(ExternalError::OutOfTurn { program }),
            // Who does not read any more may still have something to say.
            _ => Ok(()),
        }
    }

    fn reply(&mut self, stopped: &dyn Fn() -> bool) -> Result<ExternalScore, ExternalError> {
        let begun = Instant::now();
        let result = self.heard_within(stopped);
        self.left = self.left.saturating_sub(begun.elapsed());
        self.startup = Duration::ZERO;
        reply::read(&self.program, &result?)
    }

    fn heard_within(&mut self, stopped: &dyn Fn() -> bool) -> Result<Vec<u8>, ExternalError> {
        let most = self.limits.per_answer.saturating_add(self.startup);
        let begun = Instant::now();
        loop {
            let program = self.program.clone();
            if stopped() {
                return Err(ExternalError::Stopped);
            }
            let waited = begun.elapsed();
            if waited >= self.left {
                let seconds = self.limits.total.as_secs_f64();
                return Err(ExternalError::TotalTime { program, seconds });
            }
            if waited >= most {
                return Err(ExternalError::TooSlow { program, seconds: most.as_secs_f64() });
            }
            let tick = TICK.min(most.saturating_sub(waited)).min(self.left.saturating_sub(waited));
            match self.replies.recv_timeout(tick) {
                Ok(Heard::Line(line)) => return Ok(line),
                Ok(Heard::TooLong) => {
                    let limit_bytes = self.limits.reply_bytes;
                    return Err(ExternalError::ReplyTooLong { program, limit_bytes });
                }
                Ok(Heard::Failed(source)) => return Err(ExternalError::Talk { program, source }),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.died()),
            }
        }
    }

    /// What it means that its output has ended.
    fn died(&mut self) -> ExternalError {
        let begun = Instant::now();
        while !self.group.has_ended() && begun.elapsed() < LEAVING {
            std::thread::sleep(TICK / 4);
        }
        let ended = self.group.has_ended();
        let status = self.end().filter(|_| ended);
        ExternalError::Died { program: self.program.clone(), status }
    }

    fn end(&mut self) -> Option<ExitStatus> {
        self.running = false;
        self.questions = None;
        self.group.kill()
    }
}
