//! Multiple choice: the answer that the model finds the most probable.

use serde::{Deserialize, Serialize};

/// How probable a model finds one of the choices.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLogprob {
    /// Log-probabilities of its tokens, summed, in nats.
    pub logprob: f64,
    /// How many tokens they are.
    pub tokens: usize,
    /// Length of its text in UTF-8.
    pub bytes: usize,
}

/// What a log-probability is divided by, so that long choices stand a chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// By nothing.
    #[default]
    Sum,
    /// By the number of tokens.
    PerToken,
    /// By the number of bytes, which is the same for every tokenizer.
    PerByte,
}

impl ChoiceLogprob {
    /// The log-probability that choices are compared by; `None` where it is no number or would be
    /// divided by 0.
    pub fn normalized(&self, normalization: Normalization) -> Option<f64> {
        let by = match normalization {
            Normalization::Sum => 1,
            Normalization::PerToken => self.tokens,
            Normalization::PerByte => self.bytes,
        };
        (by > 0 && !self.logprob.is_nan()).then(|| self.logprob / by as f64)
    }
}

/// Index of the most probable choice, of equal ones the first; `None` where none has a number.
pub fn pick(choices: &[ChoiceLogprob], normalization: Normalization) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, choice) in choices.iter().enumerate() {
        if let Some(logprob) = choice.normalized(normalization)
            && best.is_none_or(|(_, most)| logprob > most)
        {
            best = Some((index, logprob));
        }
    }
    best.map(|(index, _)| index)
}

/// 1 where the choice that is picked is the right one, else 0.
pub fn choice_accuracy(
    choices: &[ChoiceLogprob],
    normalization: Normalization,
    right: usize,
) -> f64 {
    f64::from(u8::from(pick(choices, normalization) == Some(right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(logprob: f64, tokens: usize, bytes: usize) -> ChoiceLogprob {
        ChoiceLogprob { logprob, tokens, bytes }
    }

    #[test]
    fn what_it_is_divided_by_decides() {
        let choices = [choice(-4.0, 2, 20), choice(-3.0, 1, 4), choice(-6.0, 4, 25)];
        assert_eq!(pick(&choices, Normalization::Sum), Some(1));
        assert_eq!(pick(&choices, Normalization::PerToken), Some(2));
        assert_eq!(pick(&choices, Normalization::PerByte), Some(0));
        assert_eq!(choice_accuracy(&choices, Normalization::PerByte, 0), 1.0);
        assert_eq!(choice_accuracy(&choices, Normalization::PerByte, 1), 0.0);
    }

    #[test]
    fn what_has_no_number_is_not_picked() {
        assert_eq!(pick(&[], Normalization::Sum), None);
        assert_eq!(pick(&[choice(f64::NAN, 1, 1)], Normalization::Sum), None);
        let choices = [choice(f64::NAN, 1, 1), choice(f64::NEG_INFINITY, 1, 1)];
        assert_eq!(pick(&choices, Normalization::Sum), Some(1));
        assert_eq!(
            pick(&[choice(0.0, 0, 0), choice(-9.0, 1, 1)], Normalization::PerToken),
            Some(1)
        );
        assert_eq!(pick(&[choice(-1.0, 1, 1), choice(-1.0, 1, 1)], Normalization::Sum), Some(0));
        assert_eq!(choice_accuracy(&[], Normalization::Sum, 0), 0.0);
    }
}
