//! From answers to figures: what each answer scored, and each set with its 95 % intervals.

use std::collections::BTreeMap;
use std::process::Command;

use chandler_evaluator::{
    Asked, EvalError, ExternalError, ExternalScorer, LossReport, Paired, Reference, Summary,
    pass_at_k_over,
};

use super::eval_set::EvalSet;
use crate::config::SetScorer;
use crate::failure::in_one_line;
use crate::store::{Earlier, EvalRow, EvalSample, ScoreRow, Store, StoreError};

/// Scores a set's answers; what could not be scored is returned in words, and goes without. An end
/// that somebody wants is an error: what was scored until then is no evaluation.
pub(super) fn score_samples(
    set: &EvalSet,
    step: u64,
    samples: &mut [EvalSample],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<String>, EvalError> {
    let mut failed = vec![];
    match &set.scorer {
        SetScorer::None | SetScorer::Choice(_) => {}
        SetScorer::Rule(scorer) => {
            for sample in samples {
                match scorer.score(&sample.text, set.reference(sample.position).as_ref()) {
                    Ok(score) => sample.score = score,
                    Err(error) => failed.push(format!("question {}: {error}", sample.position + 1)),
                }
            }
        }
        SetScorer::Command { command, limits } => {
            let in_its_folder = |command: &mut Command| {
                if let Some(folder) = &set.folder {
                    command.current_dir(folder);
                }
            };
            match ExternalScorer::start(command, limits, in_its_folder) {
                Ok(mut program) => failed = by_program(&mut program, set, step, samples, stop)?,
                Err(error) => failed.push(in_one_line(&error)),
            }
        }
    }
    let more = failed.len().saturating_sub(1);
    let told = failed.into_iter().next().map(|first| {
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        format!("eval set {}, answers without a score: {first}{more}", set.name)
    });
    Ok(told.into_iter().collect())
}

/// Has a program score answers, for as long as it runs.
fn by_program(
    program: &mut ExternalScorer,
    set: &EvalSet,
    step: u64,
    samples: &mut [EvalSample],
    stop: &dyn Fn() -> bool,
) -> Result<Vec<String>, EvalError> {
    let mut failed = vec![];
    for sample in samples {
        let reference = set.reference(sample.position);
        let asked = Asked {
            prompt: &sample.prompt,
            answer: &sample.text,
            reference: reference.as_ref(),
            set: &set.name,
            step,
        };
        match program.score(&asked, stop) {
            Ok(scored) => sample.score = scored.score,
            Err(ExternalError::Stopped) => return Err(EvalError::Stopped),
            Err(error) => failed.push(in_one_line(&error)),
        }
        if !program.is_running() {
            break;
        }
    }
    Ok(failed)
}

/// The share of the answers that equal their reference, where one has some.
pub(super) fn share_that_matches(samples: &[EvalSample]) -> Option<f64> {
    let matches: Vec<bool> = samples.iter().filter_map(|sample| sample.exact_match).collect();
    let hits = matches.iter().filter(|matched| **matched).count();
    (!matches.is_empty()).then(|| hits as f64 / matches.len() as f64)
}

/// What the loss of a set's rows comes to.
pub(super) fn rows_of_loss(set: &EvalSet, report: Option<&LossReport>) -> Vec<ScoreRow> {
    let Some(report) = report else { return vec![] };
    let with_ends = |row: ScoreRow, ends: Option<[f64; 2]>| {
        let [low, high] = ends.map_or([None, None], |ends| ends.map(Some));
        ScoreRow { low, high, ..row }
    };
    let row = |metric, value| row_of_loss(set, report, metric, value);
    vec![
        with_ends(row("loss", report.loss), report.loss_interval),
        with_ends(row("perplexity", report.perplexity), report.perplexity_interval()),
        with_ends(row("token_accuracy", report.token_accuracy), report.token_accuracy_interval),
    ]
}

/// A value that is made of the loss of a set's rows.
pub(super) fn row_of_loss(
    set: &EvalSet,
    report: &LossReport,
    metric: &str,
    value: f64,
) -> ScoreRow {
    let (asked, count) = (set.asked_of_rows.clone(), report.tokens as u64);
    ScoreRow { asked, count, ..set.score(metric, value) }
}

/// What a set's answers come to: the mean of the questions' scores and, where there are several
/// answers to each, pass@k. Nothing where the model is trained on the questions.
pub(super) fn rows_of_samples(set: &EvalSet, samples: &[EvalSample]) -> Vec<ScoreRow> {
    if set.questions_are_trained {
        return vec![];
    }
    let by_question = by_question(samples);
    let means: Vec<f64> = by_question.values().map(|scores| mean(scores)).collect();
    let mut rows: Vec<ScoreRow> =
        row(set, set.scorer.metric(), Summary::of(&means)).into_iter().collect();
    if set.attempts > 1 {
        let problem = |scores: &Vec<f64>| {
            (scores.len() as u64, scores.iter().filter(|score| **score >= 1.0).count() as u64)
        };
        let problems: Vec<(u64, u64)> = by_question.values().map(problem).collect();
        let powers = std::iter::successors(Some(1), |k| Some(k * 2));
        let smaller = powers.take_while(|k| *k < set.attempts as u64);
        for k in smaller.chain([set.attempts as u64]) {
            if let Some(summary) = pass_at_k_over(&problems, k) {
                rows.extend(row(set, &format!("pass@{k}"), summary));
            }
        }
    }
    rows
}

fn row(set: &EvalSet, metric: &str, summary: Summary) -> Option<ScoreRow> {
    let Summary { value, low, high, count } = summary;
    Some(ScoreRow { low, high, count: count as u64, ..set.score(metric, value?) })
}

/// The scores of each question's answers.
fn by_question(samples: &[EvalSample]) -> BTreeMap<u64, Vec<f64>> {
    let mut scores: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for sample in samples {
        if let Some(score) = sample.score {
            scores.entry(sample.position).or_default().push(score);
        }
    }
    scores
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// The evaluation, with how much each set's score differs from the base model's, or from the first time
/// that the same was asked, question by question.
pub(crate) fn with_gains(
    eval: &EvalRow,
    samples: &[EvalSample],
    store: &Store,
    run_id: i64,
) -> Result<EvalRow, StoreError> {
    let mut eval = eval.clone();
    for score in &mut eval.scores {
        let of_set: Vec<EvalSample> =
            samples.iter().filter(|sample| sample.set == score.set).cloned().collect();
        let earlier = store.earlier_scores(&score.asked, &score.metric, (run_id, eval.step))?;
        let Some(Earlier { by_question, of_base }) = earlier else { continue };
        if set_gain(score, &of_set, &by_question) {
            score.of_base = of_base;
        }
    }
    Ok(eval)
}

/// How much a score differs from another model's, by the answers of both.
pub(crate) fn gain_over(score: &mut ScoreRow, samples: &[EvalSample], of_other: &[EvalSample]) {
    let of_set = |samples: &[EvalSample]| -> Vec<EvalSample> {
        samples.iter().filter(|sample| sample.set == score.set).cloned().collect()
    };
    let (now, before) = (of_set(samples), by_question(&of_set(of_other)));
    let before = before.into_iter().map(|(at, scores)| (at, mean(&scores))).collect();
    set_gain(score, &now, &before);
}

/// Fills in the difference, question by question, where the score is the mean of what the set's answers
/// scored; whether it is.
fn set_gain(score: &mut ScoreRow, of_set: &[EvalSample], before: &BTreeMap<u64, f64>) -> bool {
    let now = by_question(of_set);
    let of_rows = ["loss", "perplexity", "token_accuracy", "generalisation_gap"];
    let is_mean = !score.metric.starts_with("pass@")
        && !of_rows.contains(&score.metric.as_str())
        && score.count == now.len() as u64;
    let pairs = now.iter().filter_map(|(at, scores)| Some((*before.get(at)?, mean(scores))));
    let (before, after): (Vec<f64>, Vec<f64>) = pairs.unzip();
    let Some(paired) = Paired::of(&before, &after).filter(|_| is_mean) else { return false };
    let Summary { value, low, high, .. } = paired.difference;
    (score.gain, score.gain_low, score.gain_high) = (value, low, high);
    true
}

impl EvalSet {
    /// What an answer to the question at this position should be.
    pub(super) fn reference(&self, position: u64) -> Option<Reference> {
        let question = self.questions.get(position as usize)?;
        match &question.expected {
            Some(expected) => Some(Reference::from(expected.clone())),
            None => question.reference.clone().map(Reference::from),
        }
    }

    /// A value of this set.
    pub(super) fn score(&self, metric: &str, value: f64) -> ScoreRow {
        let (set, metric) = (self.name.clone(), metric.to_owned());
        ScoreRow { set, metric, asked: self.asked.clone(), value, ..ScoreRow::default() }
    }

    /// The records whose questions no answer got right.
    pub(super) fn wrong_records(&self, samples: &[EvalSample]) -> Vec<String> {
        let is_wrong = |scores: &Vec<f64>| scores.iter().all(|score| *score < 1.0);
        let wrong = by_question(samples).into_iter().filter(|(_, scores)| is_wrong(scores));
        let record = |(at, _): (u64, Vec<f64>)| self.questions.get(at as usize)?.record.clone();
        wrong.filter_map(record).collect()
    }
}

/// The log's words for one metric: its value with its interval.
pub(crate) fn shown(score: &ScoreRow) -> String {
    let mut text = format!("{} {} {:.4}", score.set, score.metric, score.value);
    if let (Some(low), Some(high)) = (score.low, score.high) {
        text += &format!(" [{low:.4}, {high:.4}]");
    }
    if let Some(gain) = score.gain {
        let over = if score.of_base { "over the base model" } else { "since the first time" };
        text += &format!(", {gain:+.4} {over}");
    }
    text
}
