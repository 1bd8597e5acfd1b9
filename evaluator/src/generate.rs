//! Prompts in, new tokens out: one prefill for a batch, then token by token.

use std::time::Instant;

use candle_core::Tensor;
use chandler_model::logits::{log_sum_exp, most_probable_of_rows, with_rows};
use chandler_model::{CausalLm, KvCache};
use rayon::prelude::*;
use serde::Serialize;

use crate::EvalError;
use crate::penalties::Place;
use crate::sampling::{Sampler, SamplingOptions};

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens of one answer.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
    /// How the next token is chosen.
    pub sampling: SamplingOptions,
    /// Prompts side by side.
    pub batch_size: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 2048,
            stop_ids: vec![],
            sampling: SamplingOptions::default(),
            batch_size: 8,
        }
    }
}

/// Answers are not cut below this.
const FEWEST_TOKENS: usize = 16;

impl GenerateOptions {
    /// What may fit where a batch of so many prompts did not: half of them, and answers of half the
    /// length once there is one prompt; `None` where nothing is left to halve.
    pub fn smaller(&self, prompts: usize) -> Option<Self> {
        let mut options = self.clone();
        if prompts > 1 {
            options.batch_size = prompts.div_ceil(2);
        } else if options.max_new_tokens > FEWEST_TOKENS {
            options.batch_size = 1;
            options.max_new_tokens = (options.max_new_tokens / 2).max(FEWEST_TOKENS);
        } else {
            return None;
        }
        Some(options)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// By one of the stop tokens, which is its last.
    StopToken,
    /// The watcher saw a stop string.
    StopString,
    /// It is as long as it may be.
    MaxNewTokens,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// The answer; a stop token that ended it is included.
    pub new_ids: Vec<u32>,
    /// Log-probability of each of them under the model's own logits, in nats.
    pub logprobs: Vec<f64>,
    /// Why it ended.
    pub ended: Ended,
}

/// How far the answers to some prompts have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answering {
    /// Prompts whose answer is finished.
    pub answered: usize,
    /// Prompts in all.
    pub prompts: usize,
    /// Tokens generated so far, by all of them.
    pub new_tokens: usize,
}

/// Looks at the answer so far of the prompt with this number, and says whether it ends here.
pub(crate) type Watcher<'a> = &'a mut dyn FnMut(usize, &[u32]) -> Option<Ended>;

/// One batch, with a cache that its caller owns: prompts and their numbers. `stopped` is asked
/// between tokens and between parts of long prompts, and told how far the batch has come. Beside each answer stands when it was
/// complete, in seconds since the batch began.
pub(crate) fn generate_batch(
    model: &CausalLm,
    cache: &mut KvCache,
    prompts: &[(usize, &[u32])],
    options: &GenerateOptions,
    watcher: Watcher,
    stopped: &dyn Fn(Answering) -> bool,
) -> Result<Vec<(Generation, f64)>, EvalError> {
    let began = Instant::now();
    let mut answers: Vec<Answer> =
        prompts.iter().map(|(number, prompt)| Answer::new(*number, prompt, options)).collect();
    let inputs: Vec<(usize, &[u32])> =
        prompts.iter().enumerate().map(|(row, (_, prompt))| (row, *prompt)).collect();
    let prefilled = model.forward_cached_unless(&inputs, cache, &|| stopped(so_far(&answers)))?;
    let mut logits = prefilled.ok_or(EvalError::Stopped)?;
    loop {
        extend(&mut answers, &logits, options, watcher)?;
        let now = began.elapsed().as_secs_f64();
        for answer in answers.iter_mut().filter(|answer| answer.ended.is_some()) {
            answer.seconds.get_or_insert(now);
        }
        let written = |answer: &Answer| answer.ended.is_none();
        let rows: Vec<usize> = (0..answers.len()).filter(|row| written(&answers[*row])).collect();
        if rows.is_empty() {
            break;
        }
        if stopped(so_far(&answers)) {
            return Err(EvalError::Stopped);
        }
        let inputs: Vec<(usize, &[u32])> = rows
            .iter()
            .map(|row| (*row, answers[*row].seen.last().map_or(&[][..], std::slice::from_ref)))
            .collect();
        logits = model.forward_cached(&inputs, cache)?;
    }
    Ok(answers.into_iter().map(Answer::finish).collect())
}

fn so_far(answers: &[Answer]) -> Answering {
    Answering {
        answered: answers.iter().filter(|answer| answer.ended.is_some()).count(),
        prompts: answers.len(),
        new_tokens: answers.iter().map(|answer| answer.logprobs.len()).sum(),
    }
}

/// The next token of every answer that is still being written; `logits` has a row for each.
fn extend(
    answers: &mut [Answer],
    logits: &Tensor,
    options: &GenerateOptions,
    watcher: Watcher,
) -> Result<(), EvalError> {
    let mut open: Vec<&mut Answer> =
        answers.iter_mut().filter(|answer| answer.ended.is_none()).collect();
    if options.sampling.takes_the_most_probable() {
        for (answer, (id, logprob)) in open.iter_mut().zip(most_probable_of_rows(logits)?) {
            answer.take(id, logprob);
        }
    } else {
        with_rows(logits, |rows| {
            let each = open.par_iter_mut().zip(rows);
            each.try_for_each(|(answer, logits)| answer.choose(logits, options))
        })?;
    }
    for answer in open {
        answer.end(options, watcher);
    }
    Ok(())
}

/// An answer being written.
struct Answer {
    number: usize,
    /// The prompt and the answer so far.
    seen: Vec<u32>,
    prompt_len: usize,
    logprobs: Vec<f64>,
    sampler: Sampler,
    ended: Option<Ended>,
    seconds: Option<f64>,
}

impl Answer {
    fn new(number: usize, prompt: &[u32], options: &GenerateOptions) -> Self {
        Self {
            number,
            seen: prompt.to_vec(),
            prompt_len: prompt.len(),
            logprobs: vec![],
            sampler: Sampler::new(&options.sampling, number),
            ended: (options.max_new_tokens == 0).then_some(Ended::MaxNewTokens),
            seconds: None,
        }
    }

    fn choose(&mut self, logits: &[f32], options: &GenerateOptions) -> Result<(), EvalError> {
        let (seen, prompt_len) = (&self.seen[..], self.prompt_len);
        let place = Place { seen, prompt_len, stop_ids: &options.stop_ids };
        let id = self.sampler.next(logits, &place)?;
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NAN);
        self.take(id, f64::from(logit) - log_sum_exp(logits));
        Ok(())
    }

    fn take(&mut self, id: u32, logprob: f64) {
        self.logprobs.push(logprob);
        self.seen.push(id);
    }

    /// Sees whether the newest token is the last.
    fn end(&mut self, options: &GenerateOptions, watcher: Watcher) {
        let new_ids = &self.seen[self.prompt_len..];
        let stops = new_ids.last().is_some_and(|id| options.stop_ids.contains(id));
        self.ended = if stops {
            Some(Ended::StopToken)
        } else if let Some(ended) = watcher(self.number, new_ids) {
            Some(ended)
        } else {
            (new_ids.len() >= options.max_new_tokens).then_some(Ended::MaxNewTokens)
        };
    }

    fn finish(mut self) -> (Generation, f64) {
        let new_ids = self.seen.split_off(self.prompt_len);
        let ended = self.ended.unwrap_or(Ended::MaxNewTokens);
        let generation =
            Generation { prompt_ids: self.seen, new_ids, logprobs: self.logprobs, ended };
        (generation, self.seconds.unwrap_or(0.0))
    }
}
