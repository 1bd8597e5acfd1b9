//! Evaluations: their figures, the scores of each set, and every answer.

use rusqlite::types::Value;
use rusqlite::{Row, Transaction, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::error::{Doing, StoreError};
use super::{Store, now};

/// Names of the job's own set, by what its questions are.
pub const HELD_OUT: &str = "held-out";
/// Its questions are those of `eval.prompts`.
pub const PROMPTS: &str = "prompts";
/// Its questions are rows that are trained on.
pub const TRAINING: &str = "training";

/// The sets that are the job's own, which no eval set may be called.
pub const OWN_SETS: [&str; 3] = [HELD_OUT, PROMPTS, TRAINING];

/// One evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// The step before which it was made; 0 is before the first.
    pub step: u64,
    /// Loss on held-out rows.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Part of the held-out tokens that were the most probable ones.
    pub token_accuracy: Option<f64>,
    /// Part of the answers that equal their reference.
    pub exact_match: Option<f64>,
    /// Every metric of every set.
    #[serde(default)]
    pub scores: Vec<ScoreRow>,
}

/// One metric of one set of questions or rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// The set.
    pub set: String,
    /// The metric.
    pub metric: String,
    /// What tells whether the same was asked another time.
    #[serde(default)]
    pub asked: String,
    /// The value.
    pub value: f64,
    /// Bounds of its 95 % interval, where there is one.
    pub low: Option<f64>,
    /// The upper one.
    pub high: Option<f64>,
    /// Questions, or tokens, that it is made from.
    pub count: u64,
    /// How much it differs from the base model, or from the first time that the same was asked,
    /// question by question.
    pub gain: Option<f64>,
    /// Bounds of the 95 % interval of that.
    pub gain_low: Option<f64>,
    /// The upper one.
    pub gain_high: Option<f64>,
    /// The base model's value, or that of the first time that the same was asked.
    #[serde(default)]
    pub base: Option<f64>,
    /// Whether `base` and `gain` go by the base model, and not by the first time.
    #[serde(default)]
    pub of_base: bool,
    /// The best value up to this one.
    #[serde(default)]
    pub best: Option<f64>,
}

/// One generated answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalSample {
    /// The set whose question it answers.
    #[serde(default)]
    pub set: String,
    /// The number of the question in it, from 0.
    #[serde(default)]
    pub position: u64,
    /// Which answer to it, from 0.
    #[serde(default)]
    pub attempt: u64,
    /// The prompt.
    pub prompt: String,
    /// The answer it should have, where known.
    pub reference: Option<String>,
    /// The answer it got.
    pub text: String,
    /// What the set's scorer gave it, from 0 to 1.
    #[serde(default)]
    pub score: Option<f64>,
    /// Whether the two are equal, white space at the ends aside, where a reference is known.
    pub exact_match: Option<bool>,
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: Option<u64>,
    /// Tokens generated.
    pub new_tokens: u64,
    /// Seconds from the beginning of its batch to its last token.
    #[serde(default)]
    pub seconds: Option<f64>,
}

impl ScoreRow {
    /// Whether the evaluation has it as a figure of its own, too.
    pub fn is_figure(&self) -> bool {
        let figures = ["loss", "perplexity", "token_accuracy", "exact_match"];
        self.is_own() && figures.contains(&self.metric.as_str())
    }

    /// Whether it is of the job's own rows or questions.
    pub fn is_own(&self) -> bool {
        OWN_SETS.contains(&self.set.as_str())
    }
}

impl EvalRow {
    /// A metric by the name that `eval.metric_for_best_model` has: of the job's own set, or
    /// `SET/METRIC`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        if let Some((set, metric)) = name.rsplit_once('/') {
            let score = self.scores.iter().find(|s| s.set == set && s.metric == metric);
            return score.map(|score| score.value);
        }
        match name {
            "loss" => self.loss,
            "perplexity" => self.perplexity,
            "token_accuracy" => self.token_accuracy,
            "exact_match" => self.exact_match,
            _ => None,
        }
    }
}

impl Store {
    /// Records an evaluation and its samples, all or none.
    pub fn record_eval(
        &mut self,
        run_id: i64,
        eval: &EvalRow,
        samples: &[EvalSample],
    ) -> Result<(), StoreError> {
        let doing = "record an evaluation";
        let transaction = self.connection.transaction().doing(doing)?;
        write_eval(&transaction, run_id, eval).doing(doing)?;
        for sample in samples {
            write_answer(&transaction, run_id, eval.step, sample).doing(doing)?;
        }
        transaction.commit().doing(doing)
    }

    /// The evaluations of a run, in order, with what their scores compare to.
    pub fn evals(&self, run_id: i64) -> Result<Vec<EvalRow>, StoreError> {
        let doing = "read evaluations";
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT step, loss, perplexity, token_accuracy, exact_match
                 FROM evals WHERE run_id = ?1 ORDER BY step",
            )
            .doing(doing)?;
        let rows = statement
            .query_map([run_id], |row| {
                Ok(EvalRow {
                    step: row.get::<_, i64>(0)? as u64,
                    loss: row.get(1)?,
                    perplexity: row.get(2)?,
                    token_accuracy: row.get(3)?,
                    exact_match: row.get(4)?,
                    scores: vec![],
                })
            })
            .doing(doing)?;
        let mut evals: Vec<EvalRow> = rows.collect::<Result<_, _>>().doing(doing)?;
        for (step, score) in self.scores(run_id)? {
            if let Ok(at) = evals.binary_search_by_key(&step, |eval| eval.step) {
                evals[at].scores.push(score);
            }
        }
        Ok(evals)
    }

    /// The step of the newest evaluation of a run.
    pub fn last_eval_step(&self, run_id: i64) -> Result<Option<u64>, StoreError> {
        self.connection
            .query_row("SELECT max(step) FROM evals WHERE run_id = ?1", [run_id], |row| {
                row.get::<_, Option<i64>>(0)
            })
            .doing("read the newest evaluation")
            .map(|step| step.map(|step| step as u64))
    }

    /// The scores of a run with their steps, in order, with base and best filled in.
    fn scores(&self, run_id: i64) -> Result<Vec<(u64, ScoreRow)>, StoreError> {
        let doing = "read scores";
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT step, set_name, metric, asked, value, low, high, count, gain, gain_low,
                        gain_high
                 FROM scores WHERE run_id = ?1 ORDER BY step, set_name, metric",
            )
            .doing(doing)?;
        let rows = statement.query_map([run_id], score_in).doing(doing)?;
        let mut scores: Vec<(u64, ScoreRow)> = rows.collect::<Result<_, _>>().doing(doing)?;
        self.compare(run_id, &mut scores)?;
        Ok(scores)
    }

    /// The samples of one evaluation, set by set, in order.
    pub fn eval_samples(&self, run_id: i64, step: u64) -> Result<Vec<EvalSample>, StoreError> {
        let found = self.answers(
            "run_id = ?1 AND step = ?2 ORDER BY set_name, position, attempt",
            params![run_id, step as i64],
        )?;
        Ok(found.into_iter().map(|(_, sample)| sample).collect())
    }

    /// Every answer of a run to one question, with the steps, in order.
    pub fn answers_to(
        &self,
        run_id: i64,
        set: &str,
        position: u64,
    ) -> Result<Vec<(u64, EvalSample)>, StoreError> {
        self.answers(
            "run_id = ?1 AND set_name = ?2 AND position = ?3 ORDER BY step, attempt",
            params![run_id, set, position as i64],
        )
    }

    fn answers(
        &self,
        rest: &str,
        params: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<(u64, EvalSample)>, StoreError> {
        let doing = "read samples";
        let mut statement = self
            .connection
            .prepare_cached(&format!(
                "SELECT step, set_name, position, attempt, prompt, reference, text, score,
                        prompt_tokens, new_tokens, seconds
                 FROM answers WHERE {rest}"
            ))
            .doing(doing)?;
        let rows = statement.query_map(params, answer_in).doing(doing)?;
        rows.collect::<Result<_, _>>().doing(doing)
    }
}

/// Replaces the evaluation, and removes what was recorded with an earlier one of the same step.
fn write_eval(to: &Transaction, run_id: i64, eval: &EvalRow) -> rusqlite::Result<()> {
    let step = eval.step as i64;
    to.execute(
        "INSERT OR REPLACE INTO evals (run_id, step, at, loss, perplexity, token_accuracy,
             exact_match) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            run_id,
            step,
            now(),
            eval.loss,
            eval.perplexity,
            eval.token_accuracy,
            eval.exact_match
        ],
    )?;
    to.execute("DELETE FROM answers WHERE run_id = ?1 AND step = ?2", params![run_id, step])?;
    to.execute("DELETE FROM scores WHERE run_id = ?1 AND step = ?2", params![run_id, step])?;
    // SQLite takes what is no number for nothing, which a score cannot be.
    for score in eval.scores.iter().filter(|score| !score.value.is_nan()) {
        to.execute(
            "INSERT INTO scores (run_id, step, set_name, metric, asked, value, low, high, count,
                 gain, gain_low, gain_high)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                run_id,
                step,
                score.set,
                score.metric,
                score.asked,
                score.value,
                score.low,
                score.high,
                score.count as i64,
                score.gain,
                score.gain_low,
                score.gain_high,
            ],
        )?;
    }
    Ok(())
}

fn write_answer(
    to: &Transaction,
    run_id: i64,
    step: u64,
    sample: &EvalSample,
) -> rusqlite::Result<()> {
    to.prepare_cached(
        "INSERT INTO answers (run_id, step, set_name, position, attempt, prompt, reference, text,
             score, prompt_tokens, new_tokens, seconds)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params_from_iter(
        [Value::from(run_id), (step as i64).into()].into_iter().chain(values(sample)),
    ))
    .map(drop)
}

/// What an answer has, from its set on, in the order of the columns.
pub(super) fn values(sample: &EvalSample) -> [Value; 10] {
    [
        sample.set.clone().into(),
        (sample.position as i64).into(),
        (sample.attempt as i64).into(),
        sample.prompt.clone().into(),
        sample.reference.clone().into(),
        sample.text.clone().into(),
        sample.score.into(),
        sample.prompt_tokens.map(|tokens| tokens as i64).into(),
        (sample.new_tokens as i64).into(),
        sample.seconds.into(),
    ]
}

fn score_in(row: &Row) -> rusqlite::Result<(u64, ScoreRow)> {
    let score = ScoreRow {
        set: row.get(1)?,
        metric: row.get(2)?,
        asked: row.get(3)?,
        value: row.get(4)?,
        low: row.get(5)?,
        high: row.get(6)?,
        count: row.get::<_, i64>(7)? as u64,
        gain: row.get(8)?,
        gain_low: row.get(9)?,
        gain_high: row.get(10)?,
        ..ScoreRow::default()
    };
    Ok((row.get::<_, i64>(0)? as u64, score))
}

pub(super) fn answer_in(row: &Row) -> rusqlite::Result<(u64, EvalSample)> {
    let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
    let (reference, text): (Option<String>, String) = (row.get(5)?, row.get(6)?);
    let matched = reference.as_ref().map(|expected| expected.trim() == text.trim());
    let sample = EvalSample {
        set: row.get(1)?,
        position: number(2)?,
        attempt: number(3)?,
        prompt: row.get(4)?,
        reference,
        text,
        score: row.get(7)?,
        exact_match: matched,
        prompt_tokens: row.get::<_, Option<i64>>(8)?.map(|tokens| tokens as u64),
        new_tokens: number(9)?,
        seconds: row.get(10)?,
    };
    Ok((number(0)?, sample))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn score(metric: &str, value: f64) -> ScoreRow {
        let (set, asked) = ("sums".to_owned(), "a".to_owned());
        ScoreRow { set, metric: metric.to_owned(), asked, value, count: 2, ..ScoreRow::default() }
    }

    fn sample(position: u64, score: f64) -> EvalSample {
        EvalSample {
            set: "sums".into(),
            position,
            prompt: "1 + 1 =".into(),
            reference: Some("2".into()),
            text: " 2\n".into(),
            score: Some(score),
            exact_match: Some(true),
            new_tokens: 3,
            ..EvalSample::default()
        }
    }

    fn eval(step: u64, loss: f64, right: f64) -> EvalRow {
        let scores = vec![score("exact_match", right), score("loss", loss)];
        EvalRow { step, loss: Some(loss), scores, ..EvalRow::default() }
    }

    #[test]
    fn an_evaluation_comes_back_as_written_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        let (mut row, samples) = (eval(0, 1.0, 0.5), [sample(0, 1.0), sample(1, 0.0)]);
        store.record_eval(run, &row, &samples).unwrap();
        store.record_eval(run, &row, &samples[..1]).unwrap();
        for score in &mut row.scores {
            (score.base, score.best) = (Some(score.value), Some(score.value));
        }
        assert_eq!(store.evals(run).unwrap(), [row]);
        assert_eq!(store.eval_samples(run, 0).unwrap(), samples[..1]);
        assert_eq!(store.last_eval_step(run).unwrap(), Some(0));
    }

    #[test]
    fn a_metric_is_found_by_its_name() {
        let row = eval(3, 0.25, 0.5);
        assert_eq!(row.metric("loss"), Some(0.25));
        assert_eq!(row.metric("sums/exact_match"), Some(0.5));
        assert_eq!(row.metric("sums/nothing"), None);
        assert_eq!(row.metric("perplexity"), None);
    }
}
