//! How a run's loss began and how it ends, and whether the run came to nothing: one whose model is
//! further from its data than a guess, and than the model that it began from.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Steps at either end whose losses are averaged, at most.
const WINDOW: usize = 20;
/// What a loss must have risen by, in nats: that of a model that has not learned anything yet, which is a
/// guess, goes up and down by less.
const RISE: f64 = 1.0;

/// The losses of the first and the last steps of a run; kept in every checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trend {
    first: Vec<f64>,
    last: VecDeque<f64>,
    steps: usize,
}

/// A run that diverged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "training diverged: the loss ends at {end:.2}, above the {guess:.2} of a guess among \
     {vocab_size} tokens, and began at {begin:.2}"
)]
pub struct Diverged {
    begin: f64,
    end: f64,
    guess: f64,
    vocab_size: usize,
    learning_rate: f64,
}

impl Trend {
    /// Takes in the loss of the next step.
    pub(crate) fn see(&mut self, loss: f64) {
        self.steps += 1;
        if self.first.len() < WINDOW {
            self.first.push(loss);
        }
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(loss);
    }

    /// Whether the run ended well above where it began, and above what a guess among `vocab_size`
    /// tokens has. A run of one step did not.
    pub(crate) fn verdict(&self, vocab_size: usize, learning_rate: f64) -> Result<(), Diverged> {
        let len = WINDOW.min(self.steps / 2);
        if len == 0 {
            return Ok(());
        }
        let mean = |losses: &mut dyn Iterator<Item = &f64>| losses.sum::<f64>() / len as f64;
        let begin = mean(&mut self.first.iter().take(len));
        let end = mean(&mut self.last.iter().rev().take(len));
        let guess = (vocab_size as f64).ln();
        if end > guess && end > begin + RISE {
            return Err(Diverged { begin, end, guess, vocab_size, learning_rate });
        }
        Ok(())
    }
}

impl Diverged {
    /// What to do about it.
    pub fn hint(&self) -> String {
        format!(
            "lower train.learning_rate, which is {}, or add train.warmup_steps; the model is as it was",
            self.learning_rate
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(losses: impl IntoIterator<Item = f64>) -> Result<(), Diverged> {
        let mut trend = Trend::default();
        for loss in losses {
            // As a run does that is stopped and goes on after every step.
            trend = serde_json::from_str(&serde_json::to_string(&trend).unwrap()).unwrap();
            trend.see(loss);
        }
        // A guess among 1,000 tokens has 6.91.
        trend.verdict(1000, 5.0)
    }

    #[test]
    fn a_run_that_ends_above_its_beginning_and_above_a_guess_diverged() {
        let error = verdict([1.5, 1.4, 30.0, 22.0]).unwrap_err();
        let words = "training diverged: the loss ends at 26.00, above the 6.91 of a guess among 1000 \
                     tokens, and began at 1.45";
        assert_eq!(error.to_string(), words);
        assert!(error.hint().contains("train.learning_rate, which is 5"), "{}", error.hint());
        assert!(verdict((0..500).map(|step| if step < 20 { 2.0 } else { 7.0 })).is_err());
    }

    #[test]
    fn others_did_not() {
        for losses in [
            vec![],
            vec![50.0],
            // It learned, of data that it is worse at than a guess.
            vec![20.0, 18.0, 12.0, 11.0],
            // It forgot, and is better than a guess still.
            vec![1.5, 1.4, 3.0, 5.0],
            // It is a guess still.
            vec![6.90, 6.91, 6.92, 6.95],
            // A peak that it came down from.
            vec![1.5, 1.4, 90.0, 80.0, 1.6, 1.5],
        ] {
            assert_eq!(verdict(losses), Ok(()));
        }
    }
}
