//! A worker that stays: it is asked one prompt after the other, and replaced when it ends.

use std::io::Write;
use std::path::PathBuf;

use super::error::{End, WorkerError};
use super::parent::{Handed, Supervision, Watch, Worker, confinement};
use super::protocol::{Errand, Query, Stage, Work};
use crate::config::LimitsConfig;

/// A worker with a model's tokenizer and chat template in hand.
pub(crate) struct Standing {
    limits: LimitsConfig,
    errand: Errand,
    /// `None` once it has ended.
    worker: Option<Worker>,
    tokenizer_sha256: String,
    /// What it has been asked so far; its bounds on memory and CPU time are for all of that.
    asked: u64,
}

impl Standing {
    /// Starts one and waits until it has read and tried the model's files.
    pub(crate) fn start(
        limits: &LimitsConfig,
        model_folder: PathBuf,
        vocab_size: Option<usize>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, WorkerError> {
        let confinement = confinement(limits, &Work::Stand);
        let errand = Errand { confinement, model_folder, vocab_size, work: Work::Stand };
        let mut standing = Self {
            limits: limits.clone(),
            errand,
            worker: None,
            tokenizer_sha256: String::new(),
            asked: 0,
        };
        standing.begin(stop)?;
        Ok(standing)
    }

    /// SHA-256 of the tokenizer that it uses.
    pub(crate) fn tokenizer_sha256(&self) -> &str {
        &self.tokenizer_sha256
    }

    /// The token ids of a prompt. A worker that has died is replaced first; one that dies of this
    /// prompt after others is replaced once, since the others may have used up what it may take.
    pub(crate) fn ask(
        &mut self,
        query: &Query,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>, WorkerError> {
        loop {
            if self.worker.is_none() {
                self.begin(stop)?;
            }
            let is_fresh = self.asked == 0;
            self.asked += 1;
            match self.exchange(Some(query), stop) {
                Ok(Handed::Asked(ids)) => return Ok(ids),
                Ok(_) => return Err(self.out_of_turn()),
                Err(WorkerError::Ended { end, .. })
                    if !is_fresh && !matches!(end, End::Stalled { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn begin(&mut self, stop: &dyn Fn() -> bool) -> Result<(), WorkerError> {
        let started = Worker::start(&self.errand).map_err(|source| WorkerError::Start { source });
        (self.worker, self.asked) = (Some(started?), 0);
        let handed = self.exchange(None, stop);
        match handed {
            Ok(Handed::Standing(sha256)) => {
                if !self.tokenizer_sha256.is_empty() && self.tokenizer_sha256 != sha256 {
                    // Whoever took the first hash for the model's would get ids of another one.
                    self.kill();
                    let folder = self.errand.model_folder.clone();
                    return Err(WorkerError::OtherTokenizer { folder });
                }
                self.tokenizer_sha256 = sha256;
                Ok(())
            }
            Ok(_) => Err(self.out_of_turn()),
            Err(error) => {
                // It said why, and has nothing more to do.
                self.kill();
                Err(error)
            }
        }
    }

    /// Says something and waits for the answer. Whoever does not answer as it should is killed.
    fn exchange(
        &mut self,
        query: Option<&Query>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Handed, WorkerError> {
        let Self { limits, errand, worker: place, .. } = self;
        let Some(mut worker) = place.take() else { return Err(WorkerError::Stopped) };
        let supervision = Supervision { limits, stop, proven: &|| {}, reading: &|_| {} };
        let stage = if query.is_some() { Stage::Records } else { Stage::Model };
        let mut watch = Watch::new(&supervision, errand, stage);
        let line = query.map(serde_json::to_vec).transpose();
        let mut line = line.map_err(|error| WorkerError::Garbled { reason: error.to_string() })?;
        if let Some(line) = &mut line {
            line.push(b'\n');
        }
        let Worker { child, input, reports, .. } = &mut worker;
        let handed = std::thread::scope(|scope| {
            if let (Some(line), Some(input)) = (&line, input) {
                // A child that takes nothing is found out by its reports, and killed below.
                scope.spawn(move || input.write_all(line));
            }
            let handed = watch.until_done(reports, &mut |_| {});
            if !matches!(handed, Ok(_) | Err(WorkerError::Refused { .. })) {
                // One that is gone already cannot be killed, which is as wanted.
                let _ = child.kill();
            }
            handed
        });
        match handed {
            Ok(Some(handed)) => {
                *place = Some(worker);
                Ok(handed)
            }
            Ok(None) => {
                let over = worker.end(false).map_err(|source| WorkerError::Start { source })?;
                Err(watch.ended(&over))
            }
            Err(error @ WorkerError::Refused { .. }) => {
                *place = Some(worker);
                Err(error)
            }
            Err(error) => {
                // Why it was killed is the news.
                let _ = worker.end(true);
                Err(error)
            }
        }
    }

    fn out_of_turn(&mut self) -> WorkerError {
        self.kill();
        WorkerError::Garbled { reason: "it handed over something else".to_owned() }
    }

    fn kill(&mut self) {
        if let Some(worker) = self.worker.take() {
            let _ = worker.end(true);
        }
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.kill();
    }
}
