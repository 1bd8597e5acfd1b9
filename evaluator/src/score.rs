//! Loss, perplexity and accuracy.

use chandler_data::Row;
use chandler_model::{IGNORE_INDEX, Score, SequenceLayout};
use serde::Serialize;

use crate::{EvalError, EvalScope};

/// How well a model predicts some rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossReport {
    /// Mean cross entropy of the tokens that carry loss, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Share of these tokens that the model would have named.
    pub token_accuracy: f64,
    /// How many they are.
    pub tokens: usize,
}

/// How probable some tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LogLikelihood {
    /// Sum of their log-probabilities, each after those before it, in nats.
    pub sum: f64,
    /// How many they are.
    pub tokens: usize,
}

impl EvalScope<'_> {
    /// Scores rows, one after another; `None` if none of their tokens carries loss.
    ///
    /// A row is taken when it is needed and let go of behind it, and between two of them it is asked
    /// whether to stop. A row that could not be read ends it.
    pub fn score<E: From<EvalError>>(
        &mut self,
        rows: impl IntoIterator<Item = Result<Row, E>>,
    ) -> Result<Option<LossReport>, E> {
        let mut total = Score::default();
        for row in rows {
            self.unless_stopped()?;
            total.add(self.score_row(&row?)?);
        }
        if total.num_targets == 0 {
            return Ok(None);
        }
        let tokens = total.num_targets as f64;
        let loss = total.loss_sum / tokens;
        Ok(Some(LossReport {
            loss,
            perplexity: loss.exp(),
            token_accuracy: total.num_correct as f64 / tokens,
            tokens: total.num_targets,
        }))
    }

    /// How probable the model holds the tokens of a row that carry loss.
    pub fn log_likelihood(&mut self, row: &Row) -> Result<LogLikelihood, EvalError> {
        let score = self.score_row(row)?;
        Ok(LogLikelihood { sum: -score.loss_sum, tokens: score.num_targets })
    }

    /// Where memory is lacking, the buffers that lie idle are given back and the row is tried once
    /// more.
    fn score_row(&self, row: &Row) -> Result<Score, EvalError> {
        let scored = match self.try_row(row) {
            Err(error) if error.is_out_of_memory() => {
                self.give_back()?;
                self.try_row(row)
            }
            scored => scored,
        };
        scored.map_err(|error| self.told(error))
    }

    fn try_row(&self, row: &Row) -> Result<Score, EvalError> {
        let layout = SequenceLayout::new(row.seq_lengths.iter().copied());
        let input = self.model().input(&row.input_ids, layout)?;
        Ok(self.model().loss(&self.model().forward(&input)?, &targets(row))?)
    }
}

/// The next token's label within each document.
fn targets(row: &Row) -> Vec<i64> {
    let mut targets: Vec<i64> = row.labels.iter().skip(1).copied().chain([IGNORE_INDEX]).collect();
    let mut end = 0;
    for length in &row.seq_lengths {
        end += *length as usize;
        if let Some(last) = end.checked_sub(1).and_then(|last| targets.get_mut(last)) {
            *last = IGNORE_INDEX;
        }
    }
    targets
}
