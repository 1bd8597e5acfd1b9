//! Loss, perplexity and accuracy.

use chandler_data::Row;
use chandler_model::{IGNORE_INDEX, Score, SequenceLayout};
use serde::Serialize;

use crate::scoring::Ratio;
use crate::{EvalError, EvalScope};

/// How well a model predicts some rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossReport {
    /// Mean cross entropy of the tokens that carry loss, in nats.
    pub loss: f64,
    /// Ends of its 95 % interval; `None` where the rows do not tell how far off it may be.
    pub loss_interval: Option<[f64; 2]>,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Share of these tokens that the model would have named.
    pub token_accuracy: f64,
    /// Ends of the 95 % interval of that, within 0 and 1.
    pub token_accuracy_interval: Option<[f64; 2]>,
    /// How many tokens they are.
    pub tokens: usize,
}

impl LossReport {
    fn of(scores: &[Score]) -> Option<Self> {
        let ratio = |part: fn(&Score) -> f64| {
            Ratio::of(scores.iter().map(|score| (part(score), score.num_targets as f64)))
        };
        let loss = ratio(|score| score.loss_sum)?;
        let accuracy = ratio(|score| score.num_correct as f64)?;
        Some(Self {
            loss: loss.value,
            loss_interval: loss.interval,
            perplexity: loss.value.exp(),
            token_accuracy: accuracy.value,
            token_accuracy_interval: accuracy
                .interval
                .map(|ends| ends.map(|end| end.clamp(0.0, 1.0))),
            tokens: scores.iter().map(|score| score.num_targets).sum(),
        })
    }

    /// Ends of the 95 % interval of the perplexity.
    pub fn perplexity_interval(&self) -> Option<[f64; 2]> {
        self.loss_interval.map(|ends| ends.map(f64::exp))
    }
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
        let mut scores = vec![];
        for row in rows {
            self.unless_stopped()?;
            scores.push(self.score_row(&row?)?);
        }
        Ok(LossReport::of(&scores))
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
