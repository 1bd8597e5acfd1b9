//! What a score is held against: the base model's, or the first there was of the same questions, and
//! the best.

use std::collections::{BTreeMap, btree_map::Entry};

use chandler_evaluator::Better;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::Store;
use super::error::{Doing, StoreError};
use super::evals::{EvalSample, ScoreRow, answer_in, values};

/// Each question's mean score in an earlier evaluation, by position.
#[derive(Debug, Clone, PartialEq)]
pub struct Earlier {
    /// The scores.
    pub by_question: BTreeMap<u64, f64>,
    /// Whether they are the base model's, and not those of the first time.
    pub of_base: bool,
}

/// What the scores of some questions are held against, as far as it is known.
#[derive(Clone, Copy)]
struct Known {
    base: f64,
    of_base: bool,
    best: f64,
}

impl Store {
    /// Records what the base model scored and answered; what was recorded of the same before goes.
    pub fn record_base(
        &mut self,
        scores: &[ScoreRow],
        samples: &[EvalSample],
    ) -> Result<(), StoreError> {
        let doing = "record the base model's scores";
        let transaction = self.connection.transaction().doing(doing)?;
        // SQLite takes what is no number for nothing, which a score cannot be.
        for score in scores.iter().filter(|score| !score.value.is_nan()) {
            transaction
                .execute(
                    "INSERT OR REPLACE INTO base_scores (asked, metric, set_name, value)
                     VALUES (?1, ?2, ?3, ?4)",
                    params![score.asked, score.metric, score.set, score.value],
                )
                .doing(doing)?;
        }
        let asked_of: BTreeMap<&str, &str> =
            scores.iter().map(|score| (score.set.as_str(), score.asked.as_str())).collect();
        for sample in samples {
            let Some(asked) = asked_of.get(sample.set.as_str()) else { continue };
            transaction
                .execute(
                    "INSERT OR REPLACE INTO base_answers (asked, set_name, position, attempt, prompt,
                         reference, text, score, prompt_tokens, new_tokens, seconds)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                    params_from_iter([Value::from((*asked).to_owned())].into_iter().chain(values(sample))),
                )
                .doing(doing)?;
        }
        transaction.commit().doing(doing)
    }

    /// Whether the base model was asked the same.
    pub fn knows_base(&self, asked: &str) -> Result<bool, StoreError> {
        self.connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM base_scores WHERE asked = ?1)")
            .and_then(|mut statement| statement.query_row([asked], |row| row.get(0)))
            .doing("read the base model's scores")
    }

    /// The base model's answers to what this run was asked, set by set, in order.
    pub fn base_answers(&self, run_id: i64) -> Result<Vec<EvalSample>, StoreError> {
        let doing = "read the base model's answers";
        let mut statement = self
            .connection
            .prepare_cached(
                "SELECT 0, set_name, position, attempt, prompt, reference, text, score,
                        prompt_tokens, new_tokens, seconds
                 FROM base_answers
                 WHERE asked IN (SELECT asked FROM scores WHERE run_id = ?1)
                 ORDER BY set_name, position, attempt",
            )
            .doing(doing)?;
        let rows = statement
            .query_map([run_id], |row| answer_in(row).map(|(_, sample)| sample))
            .doing(doing)?;
        rows.collect::<Result<_, _>>().doing(doing)
    }

    /// What each question's answers scored with the base model or, where that was not asked, when the
    /// same was asked for the first time; `None` where it was not before this step of this run.
    pub fn earlier_scores(
        &self,
        asked: &str,
        metric: &str,
        before: (i64, u64),
    ) -> Result<Option<Earlier>, StoreError> {
        if self.base_value(asked, metric)?.is_some() {
            let by_question = self.means(
                "SELECT position, avg(score) FROM base_answers
                 WHERE asked = ?1 AND score IS NOT NULL GROUP BY position",
                params![asked],
            )?;
            return Ok(Some(Earlier { by_question, of_base: true }));
        }
        let (run_id, step) = (before.0, before.1 as i64);
        let first: Option<(i64, i64, String)> = self
            .connection
            .query_row(
                "SELECT run_id, step, set_name FROM scores
                 WHERE asked = ?1 AND metric = ?2
                       AND (run_id < ?3 OR (run_id = ?3 AND step < ?4))
                 ORDER BY run_id, step LIMIT 1",
                params![asked, metric, run_id, step],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()
            .doing("read the first scores")?;
        let Some((run_id, step, set)) = first else { return Ok(None) };
        let by_question = self.means(
            "SELECT position, avg(score) FROM answers
             WHERE run_id = ?1 AND step = ?2 AND set_name = ?3 AND score IS NOT NULL
             GROUP BY position",
            params![run_id, step, set],
        )?;
        Ok(Some(Earlier { by_question, of_base: false }))
    }

    fn means(
        &self,
        query: &str,
        params: &[&dyn rusqlite::ToSql],
    ) -> Result<BTreeMap<u64, f64>, StoreError> {
        let doing = "read earlier scores";
        let mut statement = self.connection.prepare_cached(query).doing(doing)?;
        let rows = statement
            .query_map(params, |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))
            .doing(doing)?;
        rows.collect::<Result<_, _>>().doing(doing)
    }

    /// Fills in what the scores of a run, in order, are held against.
    pub(super) fn compare(
        &self,
        run_id: i64,
        scores: &mut [(u64, ScoreRow)],
    ) -> Result<(), StoreError> {
        let mut known: BTreeMap<(String, String), Known> = BTreeMap::new();
        for (_, score) in scores {
            let known = match known.entry((score.asked.clone(), score.metric.clone())) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.known_before(run_id, score)?),
            };
            known.best = better(&score.metric, known.best, score.value);
            (score.base, score.best) = (Some(known.base), Some(known.best));
            score.of_base = known.of_base;
        }
        Ok(())
    }

    /// What is known before a run's first score of its kind, which stands for what is not.
    fn known_before(&self, run_id: i64, score: &ScoreRow) -> Result<Known, StoreError> {
        let before = self.first_and_best(run_id, &score.asked, &score.metric)?;
        let (first, best) = before.unwrap_or((score.value, score.value));
        Ok(match self.base_value(&score.asked, &score.metric)? {
            Some(base) => Known { base, of_base: true, best: better(&score.metric, base, best) },
            None => Known { base: first, of_base: false, best },
        })
    }

    fn base_value(&self, asked: &str, metric: &str) -> Result<Option<f64>, StoreError> {
        self.connection
            .prepare_cached("SELECT value FROM base_scores WHERE asked = ?1 AND metric = ?2")
            .and_then(|mut statement| {
                statement.query_row([asked, metric], |row| row.get(0)).optional()
            })
            .doing("read the base model's scores")
    }

    /// The first and the best value of a metric of the same questions in runs before this one.
    fn first_and_best(
        &self,
        run_id: i64,
        asked: &str,
        metric: &str,
    ) -> Result<Option<(f64, f64)>, StoreError> {
        let best = match Better::of_metric(metric) {
            Better::Higher => "max",
            Better::Lower => "min",
        };
        self.connection
            .prepare_cached(&format!(
                "SELECT value, (SELECT {best}(value) FROM scores
                                WHERE asked = ?1 AND metric = ?2 AND run_id < ?3)
                 FROM scores WHERE asked = ?1 AND metric = ?2 AND run_id < ?3
                 ORDER BY run_id, step LIMIT 1",
            ))
            .and_then(|mut statement| {
                statement
                    .query_row(params![asked, metric, run_id], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .doing("read earlier scores")
    }
}

/// The better of two values of a metric.
fn better(metric: &str, left: f64, right: f64) -> f64 {
    if Better::of_metric(metric).compare(left, right).is_ge() { left } else { right }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::EvalRow;

    fn sample(position: u64, score: f64) -> EvalSample {
        let (set, score) = ("sums".to_owned(), Some(score));
        EvalSample { set, position, score, prompt: "2 + 2 =".to_owned(), ..EvalSample::default() }
    }

    fn scores(loss: f64, right: f64) -> Vec<ScoreRow> {
        let score = |metric: &str, value| ScoreRow {
            set: "sums".to_owned(),
            metric: metric.to_owned(),
            asked: "a".to_owned(),
            value,
            ..ScoreRow::default()
        };
        vec![score("exact_match", right), score("loss", loss)]
    }

    fn eval(step: u64, loss: f64, right: f64) -> EvalRow {
        EvalRow { step, loss: Some(loss), scores: scores(loss, right), ..EvalRow::default() }
    }

    fn against(store: &Store, run: i64, metric: &str) -> Vec<(f64, f64, bool)> {
        let evals = store.evals(run).unwrap();
        let scores = evals.iter().flat_map(|eval| &eval.scores);
        let these = scores.filter(|score| score.metric == metric);
        these.map(|s| (s.base.unwrap(), s.best.unwrap(), s.of_base)).collect()
    }

    #[test]
    fn scores_are_held_against_the_first_and_the_best_of_the_same_questions() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let first = store.begin_run(None, 1, &Config::default()).unwrap();
        store.record_eval(first, &eval(0, 2.0, 0.1), &[sample(0, 0.2), sample(1, 0.0)]).unwrap();
        store.record_eval(first, &eval(5, 1.0, 0.9), &[sample(0, 1.0)]).unwrap();
        let second = store.begin_run(None, 1, &Config::default()).unwrap();
        store.record_eval(second, &eval(0, 1.5, 0.8), &[]).unwrap();
        store.record_eval(second, &eval(5, 0.5, 0.4), &[]).unwrap();
        assert_eq!(against(&store, second, "exact_match"), [(0.1, 0.9, false), (0.1, 0.9, false)]);
        assert_eq!(against(&store, second, "loss"), [(2.0, 1.0, false), (2.0, 0.5, false)]);
        let earlier = store.earlier_scores("a", "exact_match", (second, 0)).unwrap().unwrap();
        assert_eq!(earlier.by_question, BTreeMap::from([(0, 0.2), (1, 0.0)]));
        assert!(!earlier.of_base);
        assert_eq!(store.earlier_scores("a", "exact_match", (first, 0)).unwrap(), None);
        let answers = store.answers_to(first, "sums", 0).unwrap();
        assert_eq!(answers.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 5]);
    }

    #[test]
    fn where_the_base_model_was_asked_its_score_is_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        store.record_eval(run, &eval(0, 1.0, 0.5), &[sample(0, 0.5)]).unwrap();
        assert!(!store.knows_base("a").unwrap() && store.base_answers(run).unwrap().is_empty());
        store.record_base(&scores(3.0, 0.25), &[sample(0, 0.5), sample(1, 0.0)]).unwrap();
        store.record_base(&scores(3.0, 0.75), &[sample(0, 1.0)]).unwrap();
        assert!(store.knows_base("a").unwrap() && !store.knows_base("b").unwrap());
        // Nobody has been better than it.
        assert_eq!(against(&store, run, "exact_match"), [(0.75, 0.75, true)]);
        assert_eq!(against(&store, run, "loss"), [(3.0, 1.0, true)]);
        let earlier = store.earlier_scores("a", "exact_match", (run, 0)).unwrap().unwrap();
        assert_eq!(earlier.by_question, BTreeMap::from([(0, 1.0), (1, 0.0)]));
        assert!(earlier.of_base);
        let texts = store.base_answers(run).unwrap();
        assert_eq!(texts, [sample(0, 1.0), sample(1, 0.0)]);
    }
}
