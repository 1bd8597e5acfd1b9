//! The scope that owns the cache.

use chandler_kernels::device;
use chandler_model::{CausalLm, KvCache, ModelError};
use chandler_vram::{Category, Entry, Ledger, Shortage};
use serde::Serialize;

use crate::EvalError;
use crate::generate::{Answering, Ended, GenerateOptions, Generation, generate_batch};

/// An evaluation of a model: the only place where a KV cache exists.
pub struct EvalScope<'a> {
    model: &'a CausalLm,
    ledger: Ledger,
    baseline: u64,
    stop: Option<&'a dyn Fn() -> bool>,
    tell: Option<&'a dyn Fn(Answering)>,
    peak_cache_bytes: u64,
    shrunk: Option<(Shrunk, Box<Shortage>)>,
    seconds: Vec<f64>,
}

/// What an evaluation was cut down to because memory ran out in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shrunk {
    /// Prompts side by side.
    pub batch_size: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
}

/// A cache and its line in the ledger, which leave together.
struct OwnedCache {
    cache: KvCache,
    entry: Entry,
}

impl<'a> EvalScope<'a> {
    /// Begins an evaluation; `model` stays as it is.
    pub fn open(model: &'a CausalLm, ledger: &Ledger) -> Self {
        let (ledger, baseline) = (ledger.clone(), ledger.bytes(Category::KvCache));
        Self {
            model,
            ledger,
            baseline,
            stop: None,
            tell: None,
            peak_cache_bytes: 0,
            shrunk: None,
            seconds: vec![],
        }
    }

    /// The evaluation ends with [`EvalError::Stopped`] once this says so; it is asked between
    /// tokens, between parts of long prompts, and between rows that are scored.
    #[must_use]
    pub fn stopped_by(mut self, stop: &'a dyn Fn() -> bool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Told between tokens, and between parts of long prompts, how far [`generate`](Self::generate) has come.
    #[must_use]
    pub fn telling(mut self, tell: &'a dyn Fn(Answering)) -> Self {
        self.tell = Some(tell);
        self
    }

    /// An error once somebody wants an end.
    pub(crate) fn unless_stopped(&self) -> Result<(), EvalError> {
        if self.stop.is_some_and(|stop| stop()) { Err(EvalError::Stopped) } else { Ok(()) }
    }

    /// The model that is evaluated.
    pub fn model(&self) -> &CausalLm {
        self.model
    }

    /// Bytes of the largest cache so far.
    pub fn peak_cache_bytes(&self) -> u64 {
        self.peak_cache_bytes
    }

    /// What the evaluation was cut down to, if memory ran out in it.
    pub fn shrunk(&self) -> Option<Shrunk> {
        self.shrunk.as_ref().map(|(shrunk, _)| *shrunk)
    }

    /// Who held what when the evaluation was cut down last.
    pub fn shortage(&self) -> Option<&Shortage> {
        self.shrunk.as_ref().map(|(_, shortage)| &**shortage)
    }

    /// How long each answer of the newest [`generate`](Self::generate) took, in seconds from the
    /// beginning of its batch, in the order of the prompts.
    pub fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// Answers prompts, `batch_size` at a time, each batch with a cache of its own.
    ///
    /// Prompts of like length share a batch, the longest first, so that memory that does not
    /// suffice shows at once; answers come in the order of the prompts, and do not depend on what
    /// else is in their batch.
    ///
    /// `watcher` sees each answer after each of its tokens, with the number of its prompt, and may
    /// end it.
    ///
    /// Where memory runs out, the buffers that lie idle are given back and the batch is begun anew,
    /// then with half of its prompts, down to one, and then with answers of half the length:
    /// [`shrunk`](Self::shrunk) says what became of it. That changes no answer but for its length.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        watcher: &mut dyn FnMut(usize, &[u32]) -> Option<Ended>,
    ) -> Result<Vec<Generation>, EvalError> {
        if let Some(index) = prompts.iter().position(Vec::is_empty) {
            return Err(EvalError::EmptyPrompt { index });
        }
        let prompts = longest_first(prompts);
        let mut left = &prompts[..];
        let mut options = options.clone();
        let mut all: Vec<(usize, (Generation, f64))> = Vec::with_capacity(prompts.len());
        let mut tried_again = false;
        while !left.is_empty() {
            let (batch, rest) = left.split_at(options.batch_size.clamp(1, left.len()));
            let before = Answering {
                answered: all.len(),
                prompts: prompts.len(),
                new_tokens: all.iter().map(|(_, (answer, _))| answer.new_ids.len()).sum(),
            };
            if let Some(tell) = self.tell {
                tell(before);
            }
            match self.answer(batch, before, &options, watcher) {
                Ok(answers) => {
                    all.extend(batch.iter().map(|(number, _)| *number).zip(answers));
                    (left, tried_again) = (rest, false);
                }
                Err(EvalError::OutOfMemory(shortage)) => {
                    self.give_back()?;
                    if tried_again {
                        let Some(smaller) = options.smaller(batch.len()) else {
                            return Err(EvalError::OutOfMemory(shortage));
                        };
                        options = smaller;
                        let GenerateOptions { batch_size, max_new_tokens, .. } = options;
                        self.shrunk = Some((Shrunk { batch_size, max_new_tokens }, shortage));
                    }
                    tried_again = true;
                }
                Err(error) => return Err(error),
            }
        }
        all.sort_by_key(|(number, _)| *number);
        let (answers, seconds) = all.into_iter().map(|(_, answer)| answer).unzip();
        self.seconds = seconds;
        Ok(answers)
    }

    /// Answers one batch, with a cache that is gone when this returns.
    fn answer(
        &mut self,
        batch: &[(usize, &[u32])],
        before: Answering,
        options: &GenerateOptions,
        watcher: &mut dyn FnMut(usize, &[u32]) -> Option<Ended>,
    ) -> Result<Vec<(Generation, f64)>, EvalError> {
        let longest = batch.iter().map(|(_, prompt)| prompt.len()).max().unwrap_or(0);
        let mut owned = self.cache(batch.len(), longest + options.max_new_tokens)?;
        let (stop, tell) = (self.stop, self.tell);
        let stopped = |now: Answering| {
            if let Some(tell) = tell {
                tell(Answering {
                    answered: before.answered + now.answered,
                    prompts: before.prompts,
                    new_tokens: before.new_tokens + now.new_tokens,
                });
            }
            stop.is_some_and(|stop| stop())
        };
        generate_batch(self.model, &mut owned.cache, batch, options, watcher, &stopped)
            .map_err(|error| self.told(error))
    }

    /// Memory that was lacking, with who holds what at this moment; other errors as they are.
    pub(crate) fn told(&self, error: EvalError) -> EvalError {
        match error {
            EvalError::Model(ModelError::OutOfMemory { bytes }) => {
                let wanted = bytes.map(|bytes| bytes as u64);
                let shortage = Shortage::in_heap(wanted, self.ledger.snapshot());
                EvalError::OutOfMemory(Box::new(shortage))
            }
            other => other,
        }
    }

    /// Gives back what lies idle, which may be all that is lacking.
    pub(crate) fn give_back(&self) -> Result<(), EvalError> {
        device::give_back(self.model.device()).map_err(|error| self.told(error.into()))
    }

    /// Ends the evaluation: an error, if the ledger has more of the cache than before.
    pub fn close(self) -> Result<(), EvalError> {
        let now = self.ledger.bytes(Category::KvCache);
        match now.checked_sub(self.baseline).filter(|bytes| *bytes > 0) {
            Some(bytes) => Err(EvalError::Leak { category: Category::KvCache, bytes }),
            None => Ok(()),
        }
    }

    fn cache(&mut self, rows: usize, capacity: usize) -> Result<OwnedCache, EvalError> {
        let (config, dtype) = (self.model.config(), self.model.dtype());
        let bytes = KvCache::bytes_needed(config, rows, capacity, dtype) as u64;
        let entry = self.ledger.enter(Category::KvCache, bytes);
        let cache = KvCache::new(config, rows, capacity, dtype, self.model.device())
            .map_err(|error| self.told(error.into()))?;
        self.peak_cache_bytes = self.peak_cache_bytes.max(entry.bytes());
        Ok(OwnedCache { cache, entry })
    }
}

impl Drop for EvalScope<'_> {
    /// What the device keeps of the freed cache goes back to it, however the evaluation ended.
    fn drop(&mut self) {
        let device = self.model.device();
        if device.is_cpu() {
            return;
        }
        if let Err(error) = device::give_back(device) {
            tracing::warn!(%error, "memory of an evaluation stays in the pool of the GPU");
        }
    }
}

/// Prompts with their numbers, the longest first, so that those of like length share a batch.
fn longest_first(prompts: &[Vec<u32>]) -> Vec<(usize, &[u32])> {
    let mut by_length: Vec<(usize, &[u32])> =
        prompts.iter().enumerate().map(|(number, prompt)| (number, prompt.as_slice())).collect();
    by_length.sort_by_key(|(_, prompt)| std::cmp::Reverse(prompt.len()));
    by_length
}

impl Drop for OwnedCache {
    fn drop(&mut self) {
        tracing::trace!(bytes = self.entry.bytes(), "the KV cache is freed");
    }
}
