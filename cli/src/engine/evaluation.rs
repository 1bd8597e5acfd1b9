//! Evaluation while a model trains: every set that is due, each in a scope of its own.

use chandler_data::Tokenizer;
use chandler_evaluator::{EvalError, EvalScope, GenerateOptions, LossReport};
use chandler_model::CausalLm;
use chandler_vram::{Bytes, HostMeter, Ledger};

use super::answering::{Watched, answer, choose};
use super::eval_set::EvalSet;
use super::scoring::{
    row_of_loss, rows_of_loss, rows_of_samples, score_samples, share_that_matches,
};
use super::{EngineError, device, memory};
use crate::config::SetScorer;
use crate::logging::Progress;
use crate::store::{EvalRow, EvalSample};

/// What is evaluated: the job's own questions and rows, then the eval sets.
pub(crate) struct Evaluation {
    pub(crate) sets: Vec<EvalSet>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) progress: Progress,
}

/// A set that is due, and how its answers are written this time; `None` where there is no room.
pub(crate) type Due<'a> = (&'a EvalSet, Option<GenerateOptions>);

/// What came of an evaluation.
#[derive(Default)]
pub(crate) struct Evaluated {
    pub(crate) row: EvalRow,
    pub(crate) samples: Vec<EvalSample>,
    /// What memory did not suffice for, in words.
    pub(crate) shortages: Vec<String>,
    /// What could not be scored, in words.
    pub(crate) troubles: Vec<String>,
    /// Records of questions that were answered wrongly, where they were kept.
    pub(crate) wrong: Vec<String>,
}

/// Whom an evaluation looks at, and who may end it.
pub(crate) struct Evaluator<'a> {
    pub(crate) step: u64,
    pub(crate) model: &'a CausalLm,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) ledger: &'a Ledger,
    pub(crate) stop: &'a dyn Fn() -> bool,
    pub(crate) progress: &'a Progress,
}

/// What came of one set.
#[derive(Default)]
struct OfSet {
    report: Option<LossReport>,
    samples: Vec<EvalSample>,
    /// Whether memory had answers end before they were as long as the set lets them be.
    is_cut: bool,
    peak_cache_bytes: u64,
}

impl Evaluator<'_> {
    /// Evaluates these sets. What does not fit into memory is cut or left out, and said; training
    /// is not touched by it.
    pub(crate) fn run(&self, due: &[Due]) -> Result<Evaluated, EngineError> {
        let rss = || HostMeter::new().read_host().rss;
        let before = rss();
        let mut all = Evaluated::default();
        all.row.step = self.step;
        let mut peak_cache_bytes = 0;
        for (set, options) in due {
            let of_set = self.evaluate(set, options.as_ref(), &mut all)?;
            peak_cache_bytes = peak_cache_bytes.max(of_set.peak_cache_bytes);
            self.enter(set, of_set, &mut all)?;
        }
        memory::give_back();
        self.log_memory(before, rss(), peak_cache_bytes);
        Ok(all)
    }

    /// One set, within a scope that is closed before this returns.
    fn evaluate(
        &self,
        set: &EvalSet,
        options: Option<&GenerateOptions>,
        all: &mut Evaluated,
    ) -> Result<OfSet, EngineError> {
        let Self { step, model, tokenizer, ledger, stop, progress } = *self;
        let tell = |now| progress.evaluating(now);
        let mut scope = EvalScope::open(model, ledger).stopped_by(stop).telling(&tell);
        let (mut of_set, name) = (OfSet::default(), &set.name);
        let mut unless_short = |what: &str, error: EngineError| match error {
            EngineError::Eval(EvalError::OutOfMemory(shortage)) => {
                let why = device::seen_on_gpu(&shortage);
                all.shortages.push(format!("eval at step {step}, {name}, without {what}: {why}"));
                Ok(())
            }
            error => Err(error),
        };
        match loss(&mut scope, set, progress) {
            Ok(report) => of_set.report = report,
            Err(error) => unless_short("the loss", error)?,
        }
        let answered = match (&set.scorer, options) {
            (SetScorer::None, _) | (_, None) => Ok(vec![]),
            (SetScorer::Choice(normalization), _) => {
                let tell = |done| progress.scoring(name, done, set.questions.len());
                choose(&mut scope, set, *normalization, tokenizer, &Watched { stop, tell: &tell })
            }
            (_, Some(options)) => answer(&mut scope, set, options, tokenizer),
        };
        match answered {
            Ok(samples) => of_set.samples = samples,
            Err(error) => unless_short("answers", error)?,
        }
        let longest = scope.shrunk().map(|shrunk| shrunk.max_new_tokens);
        let longest = longest.or(options.map(|options| options.max_new_tokens));
        of_set.is_cut = longest.is_some_and(|longest| longest < set.options.max_new_tokens);
        if let Some((shrunk, shortage)) = scope.shrunk().zip(scope.shortage()) {
            all.shortages.push(format!(
                "out of memory in the eval at step {step}, {name}: {}; cut to {} prompts side by \
                 side and {} new tokens",
                device::seen_on_gpu(shortage),
                shrunk.batch_size,
                shrunk.max_new_tokens
            ));
        }
        of_set.peak_cache_bytes = scope.peak_cache_bytes();
        scope.close()?;
        Ok(of_set)
    }

    /// Enters what came of a set into the whole. Answers that were cut are kept to be read, but
    /// their scores would be compared with those of whole ones, so there are none.
    fn enter(&self, set: &EvalSet, of_set: OfSet, all: &mut Evaluated) -> Result<(), EngineError> {
        let OfSet { report, mut samples, is_cut, .. } = of_set;
        let is_scored = !(is_cut && set.writes_answers());
        if is_scored {
            all.troubles.extend(score_samples(set, self.step, &mut samples, self.stop)?);
        } else if !samples.is_empty() {
            let (step, name) = (self.step, &set.name);
            all.shortages.push(format!(
                "eval at step {step}, {name}: answers that are shorter than wanted have no scores"
            ));
        }
        if set.is_own {
            all.row.loss = report.map(|report| report.loss);
            all.row.perplexity = report.map(|report| report.perplexity);
            all.row.token_accuracy = report.map(|report| report.token_accuracy);
            let known = !set.questions_are_trained && is_scored;
            all.row.exact_match = share_that_matches(&samples).filter(|_| known);
        }
        let mut scores = rows_of_loss(set, report.as_ref());
        if let (false, Some(report), Some(own)) = (set.is_own, &report, all.row.loss) {
            scores.push(row_of_loss(set, report, "generalisation_gap", report.loss - own));
        }
        // Without scores there are no rows, and no wrong answers.
        scores.extend(rows_of_samples(set, &samples));
        all.row.scores.extend(scores);
        all.wrong.extend(set.wrong_records(&samples));
        all.samples.extend(samples);
        Ok(())
    }

    fn log_memory(&self, before: Option<u64>, after: Option<u64>, cache: u64) {
        let show =
            |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| Bytes(b).to_string());
        tracing::info!(
            step = self.step,
            kv_cache_bytes = cache,
            "eval memory: {} before, {} after, KV cache {} at most and 0 now",
            show(before),
            show(after),
            Bytes(cache)
        );
    }
}

/// The loss on the set's rows, where it has some.
fn loss(
    scope: &mut EvalScope,
    set: &EvalSet,
    progress: &Progress,
) -> Result<Option<LossReport>, EngineError> {
    let Some(rows) = &set.rows else { return Ok(None) };
    let row = |index: usize| {
        progress.scoring(&set.name, index, rows.len());
        rows.row(index).map_err(|source| EngineError::Read {
            path: rows.source(index).map_or_else(Default::default, |s| s.0.to_owned()),
            source,
        })
    };
    scope.score((0..rows.len()).map(row))
}

#[cfg(test)]
mod tests {
    use chandler_data::{Question, TextPipeline};

    use super::super::source::load_model;
    use super::*;
    use crate::config::Config;
    use crate::logging::Terminal;

    #[test]
    fn answers_that_memory_cut_are_kept_and_not_scored() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/goldens/models/qwen3");
        let folder = std::path::Path::new(folder);
        let mut config = Config::default();
        config.eval.max_new_tokens = 6;
        let model = load_model(&config, folder, None, None::<&Progress>).unwrap();
        let pipeline = TextPipeline::open(folder).unwrap();
        let record = r#"{"prompt": "2 + 2 =", "completion": " 4"}"#;
        let questions: Vec<Question> = vec![pipeline.question(record, None, None).unwrap()];
        let set = EvalSet::own(&config, questions, false, None, vec![], "").unwrap();
        let (ledger, progress) = (&Ledger::new(), &Progress::new(&Terminal::stderr()));
        let evaluator = Evaluator {
            step: 0,
            model: &model,
            tokenizer: pipeline.tokenizer(),
            ledger,
            stop: &|| false,
            progress,
        };
        let with = |max_new_tokens: usize| {
            let options = GenerateOptions { max_new_tokens, ..set.options.clone() };
            evaluator.run(&[(&set, Some(options))]).unwrap()
        };
        let whole = with(6);
        assert_eq!((whole.samples.len(), whole.row.scores.len()), (1, 1));
        assert!(whole.row.exact_match.is_some() && whole.shortages.is_empty());
        let cut = with(5);
        assert_eq!((cut.samples.len(), cut.row.scores.len(), cut.row.exact_match), (1, 0, None));
        assert!(cut.shortages[0].contains("have no scores"), "{:?}", cut.shortages);
    }
}
