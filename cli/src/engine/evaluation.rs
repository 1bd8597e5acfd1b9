//! Evaluation while a model trains: answers to prompts, and the loss on held-out rows.

use chandler_data::{Dataset, Tokenizer};
use chandler_evaluator::{Ended, EvalScope, GenerateOptions, Generation, LossReport, exact_match};
use chandler_model::{CausalLm, KvCache};
use chandler_vram::{Bytes, HostMeter, Ledger};

use super::EngineError;
use crate::heap;
use crate::logging::Progress;
use crate::store::{EvalRow, EvalSample};
use crate::worker::Question;

/// What is evaluated, and how.
pub(crate) struct Evaluation {
    pub(crate) questions: Vec<Question>,
    /// Whether the model is trained on the questions' rows, so that a match proves nothing.
    pub(crate) questions_are_trained: bool,
    pub(crate) held_out: Option<Dataset>,
    pub(crate) options: GenerateOptions,
    pub(crate) stop_strings: Vec<String>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) progress: Progress,
}

/// What came of an evaluation.
pub(crate) struct Evaluated {
    pub(crate) row: EvalRow,
    pub(crate) samples: Vec<EvalSample>,
    /// What memory did not suffice for, in words.
    pub(crate) shortages: Vec<String>,
}

impl Evaluation {
    /// Bytes of the largest cache that answering the questions so takes, and of its logits.
    pub(crate) fn bytes_needed(&self, model: &CausalLm, options: &GenerateOptions) -> u64 {
        let longest = self.questions.iter().map(|q| q.prompt_ids.len()).max().unwrap_or(0);
        let rows = options.batch_size.min(self.questions.len());
        let (config, tokens) = (model.config(), longest + options.max_new_tokens);
        let cache = KvCache::bytes_needed(config, rows, tokens, model.dtype());
        (cache + 4 * rows * config.vocab_size) as u64
    }

    /// Evaluates `model` within a scope of its own. What does not fit into memory is cut or left
    /// out, and said; training is not touched by it.
    pub(crate) fn run(
        &self,
        step: u64,
        model: &CausalLm,
        options: &GenerateOptions,
        ledger: &Ledger,
        stop: &dyn Fn() -> bool,
    ) -> Result<Evaluated, EngineError> {
        let rss = || HostMeter::new().read_host().rss;
        let before = rss();
        let tell = |now| self.progress.evaluating(now);
        let mut scope = EvalScope::open(model, ledger).stopped_by(stop).telling(&tell);
        let mut shortages = vec![];
        let mut unless_short = |what: &str, error: EngineError| match error {
            EngineError::Eval(error) if error.is_out_of_memory() => {
                shortages.push(format!("eval at step {step} without {what}: {error}"));
                Ok(())
            }
            error => Err(error),
        };
        let report = match self.score(&mut scope) {
            Ok(report) => report,
            Err(error) => unless_short("the held-out loss", error).map(|()| None)?,
        };
        let samples = match answer(&mut scope, &self.questions, options, self) {
            Ok(samples) => samples,
            Err(error) => unless_short("answers", error).map(|()| vec![])?,
        };
        if let Some(shrunk) = scope.shrunk() {
            shortages.push(format!(
                "out of memory in the eval at step {step}: cut to {} prompts side by side and {} \
                 new tokens",
                shrunk.batch_size, shrunk.max_new_tokens
            ));
        }
        let cache = scope.peak_cache_bytes();
        scope.close()?;
        heap::give_back();
        let matches: Vec<bool> = samples.iter().filter_map(|sample| sample.exact_match).collect();
        let known = !matches.is_empty() && !self.questions_are_trained;
        let share = matches.iter().filter(|matched| **matched).count() as f64;
        let show =
            |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| Bytes(b).to_string());
        tracing::info!(
            step,
            kv_cache_bytes = cache,
            "eval memory: {} before, {} after, KV cache {} at most and 0 now",
            show(before),
            show(rss()),
            Bytes(cache)
        );
        let row = EvalRow {
            step,
            loss: report.map(|report| report.loss),
            perplexity: report.map(|report| report.perplexity),
            token_accuracy: report.map(|report| report.token_accuracy),
            exact_match: known.then(|| share / matches.len() as f64),
        };
        Ok(Evaluated { row, samples, shortages })
    }

    /// The loss on the held-out rows, where there are some.
    fn score(&self, scope: &mut EvalScope) -> Result<Option<LossReport>, EngineError> {
        let Some(rows) = &self.held_out else { return Ok(None) };
        let row = |index: usize| {
            rows.row(index).map_err(|source| EngineError::Read {
                path: rows.source(index).map_or_else(Default::default, |s| s.0.to_owned()),
                source,
            })
        };
        let rows: Vec<_> = (0..rows.len()).map(row).collect::<Result<_, _>>()?;
        Ok(scope.score(rows)?)
    }
}

/// Answers questions within a scope.
pub(crate) fn answer(
    scope: &mut EvalScope,
    questions: &[Question],
    options: &GenerateOptions,
    evaluation: &Evaluation,
) -> Result<Vec<EvalSample>, EngineError> {
    let prompts: Vec<Vec<u32>> = questions.iter().map(|q| q.prompt_ids.clone()).collect();
    let mut watcher = stop_watcher(&evaluation.tokenizer, &evaluation.stop_strings);
    let answers = scope.generate(&prompts, options, &mut watcher)?;
    let tokenizer = &evaluation.tokenizer;
    let sample = |(question, generation): (&Question, &Generation)| -> Result<_, EngineError> {
        let text = text_of(tokenizer, generation, &evaluation.stop_strings)?;
        let reference = question.reference.clone();
        let matched = reference.as_ref().map(|reference| exact_match(&text, reference));
        Ok(EvalSample {
            prompt: tokenizer.decode(&question.prompt_ids, true)?,
            reference,
            text,
            new_tokens: generation.new_ids.len() as u64,
            exact_match: matched,
        })
    };
    questions.iter().zip(&answers).map(sample).collect()
}

/// Ends an answer in whose last tokens a stop string stands.
pub(crate) fn stop_watcher<'a>(
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
) -> impl FnMut(usize, &[u32]) -> Option<Ended> + 'a {
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    move |_, ids| {
        if longest == 0 {
            return None;
        }
        let tail = &ids[ids.len().saturating_sub(longest + 8)..];
        let text = tokenizer.decode(tail, false).ok()?;
        stops.iter().any(|stop| text.contains(stop.as_str())).then_some(Ended::StopString)
    }
}

/// The text of an answer, up to the first stop string.
pub(crate) fn text_of(
    tokenizer: &Tokenizer,
    generation: &Generation,
    stops: &[String],
) -> Result<String, EngineError> {
    let mut text = tokenizer.decode(&generation.new_ids, true)?;
    if let Some(at) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(at);
    }
    Ok(text)
}
