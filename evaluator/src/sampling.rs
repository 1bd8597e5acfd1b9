//! Choosing the next token, with the meaning that transformers gives to each setting.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use chandler_model::logits::{self, most_probable};
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::candidates::Candidates;
use crate::penalties::{Penalties, Place};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Divides the scores; 0 always takes the most probable token.
    pub temperature: f64,
    /// Only from this many most probable tokens.
    pub top_k: Option<usize>,
    /// Only from the most probable tokens whose probabilities sum to this.
    pub top_p: Option<f64>,
    /// Only from tokens at least this probable, relative to the most probable one.
    pub min_p: Option<f64>,
    /// Positive scores of tokens that have occurred, the prompt's included, are divided by this,
    /// negative ones multiplied; 1 is off.
    pub repetition_penalty: f64,
    /// Is subtracted from the score of a token for each time that it occurs in the answer so far,
    /// as by OpenAI's API; 0 is off.
    pub frequency_penalty: f64,
    /// Is subtracted once from the score of a token that occurs in the answer so far, as by OpenAI's
    /// API; 0 is off.
    pub presence_penalty: f64,
    /// What is added to the scores of tokens, by id, before any penalty.
    pub logit_bias: BTreeMap<u32, f32>,
    /// No run of this many tokens comes twice in prompt and answer together, as in transformers;
    /// 0 is off.
    pub no_repeat_ngram_size: usize,
    /// No token ends an answer before it has this many; a stop string may.
    pub min_new_tokens: usize,
    /// How the temperature changes in the course of an answer; `None` where it does not.
    pub temperature_ramp: Option<TemperatureRamp>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            no_repeat_ngram_size: 0,
            min_new_tokens: 0,
            temperature_ramp: None,
            seed: 42,
        }
    }
}

/// A temperature that changes evenly over the first tokens of an answer: from
/// [`SamplingOptions::temperature`] at the first of them to `to` at the last, and from then on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TemperatureRamp {
    /// Where it ends; 0 always takes the most probable token.
    pub to: f64,
    /// Over how many tokens.
    pub tokens: usize,
}

impl TemperatureRamp {
    fn at(self, from: f64, token: usize) -> f64 {
        if token + 1 >= self.tokens {
            return self.to;
        }
        let share = token as f64 / (self.tokens - 1) as f64;
        from + (self.to - from) * share
    }
}

/// What a token is drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// For each token its probability; 0 where it was ruled out.
    pub probabilities: Vec<f64>,
}

impl SamplingOptions {
    /// The scores after bias and penalties at the beginning of an answer to `prompt`: what greedy
    /// decoding takes the largest of.
    pub fn penalized(&self, logits: &[f32], prompt: &[u32]) -> Vec<f32> {
        self.penalized_at(logits, &Place::after_prompt(prompt))
    }

    /// The scores after bias and penalties, and after what is ruled out, anywhere in an answer.
    pub fn penalized_at(&self, logits: &[f32], place: &Place) -> Vec<f32> {
        let mut scores = logits.to_vec();
        Penalties::default().apply(self, &mut scores, place);
        scores
    }

    /// The probabilities at the beginning of an answer to `prompt`, after every setting.
    pub fn distribution(&self, logits: &[f32], prompt: &[u32]) -> Distribution {
        self.distribution_at(logits, &Place::after_prompt(prompt))
    }

    /// The probabilities after every setting, in the order of transformers: bias, repetition
    /// penalty, frequency and presence penalty, what is ruled out, temperature, top-k, top-p,
    /// min-p.
    pub fn distribution_at(&self, logits: &[f32], place: &Place) -> Distribution {
        let temperature = self.temperature_at(place.answer().len());
        let options = Self { temperature, ..self.clone() };
        let scores = options.penalized_at(logits, place);
        let candidates = Candidates::of(&options, &scores)
            .unwrap_or_else(|| Candidates::all(&scores, options.divisor()));
        let mut probabilities = vec![0.0; logits.len()];
        for (id, probability) in candidates.ids.iter().zip(candidates.probabilities()) {
            probabilities[*id as usize] = probability;
        }
        Distribution { probabilities }
    }

    /// The temperature of the answer's token with this index, from 0.
    pub fn temperature_at(&self, token: usize) -> f64 {
        self.temperature_ramp.map_or(self.temperature, |ramp| ramp.at(self.temperature, token))
    }

    /// Whether every token of an answer is the one with the largest logit.
    pub(crate) fn takes_the_most_probable(&self) -> bool {
        self.temperature <= 0.0 && self.temperature_ramp.is_none() && !self.changes_logits()
    }

    /// What scores are divided by.
    pub(crate) fn divisor(&self) -> f64 {
        if self.temperature > 0.0 { self.temperature } else { 1.0 }
    }
}

/// Draws tokens, one stream of randomness for each row.
pub(crate) struct Sampler {
    /// Their temperature is that of the token at hand.
    options: SamplingOptions,
    /// The temperature of the first token.
    first_temperature: f64,
    draws: LogitsProcessor,
    penalties: Penalties,
    /// Penalized scores, used again for each token.
    scores: Vec<f32>,
}

/// Scores among which one draw decides; of more, a first draw decides on a block of as many.
const BLOCK: usize = 512;

impl Sampler {
    pub(crate) fn new(options: &SamplingOptions, row: usize) -> Self {
        let seed = options.seed.wrapping_add((row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let draws = LogitsProcessor::from_sampling(seed, Sampling::All { temperature: 1.0 });
        Self {
            options: options.clone(),
            first_temperature: options.temperature,
            draws,
            penalties: Penalties::default(),
            scores: vec![],
        }
    }

    /// The token at `place`, where `seen` begins with what it was at the last call.
    pub(crate) fn next(&mut self, logits: &[f32], place: &Place) -> Result<u32, EvalError> {
        if let Some(ramp) = self.options.temperature_ramp {
            self.options.temperature = ramp.at(self.first_temperature, place.answer().len());
        }
        if !self.options.changes_logits() {
            return self.choose(logits);
        }
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        scores.extend_from_slice(logits);
        self.penalties.apply(&self.options, &mut scores, place);
        let id = self.choose(&scores);
        self.scores = scores;
        id
    }

    fn choose(&mut self, scores: &[f32]) -> Result<u32, EvalError> {
        if self.options.temperature <= 0.0 {
            return Ok(most_probable(scores) as u32);
        }
        match Candidates::of(&self.options, scores) {
            Some(candidates) => {
                let scores: Vec<f32> =
                    candidates.scores.iter().map(|score| *score as f32).collect();
                Ok(candidates.ids[self.draw(&scores, 1.0)?])
            }
            None => Ok(self.draw(scores, 1.0 / self.options.temperature as f32)? as u32),
        }
    }

    /// An index, with probability `softmax(scores · factor)`.
    fn draw(&mut self, scores: &[f32], factor: f32) -> Result<usize, EvalError> {
        let max = logits::largest(scores);
        let mut first = 0;
        let mut block = scores;
        if scores.len() > BLOCK {
            let sums = logits::sums_of_exp(scores, max, factor, BLOCK);
            let sums: Vec<f32> = sums.into_iter().map(|sum| sum.ln() as f32).collect();
            first = self.draw_one(sums)? * BLOCK;
            block = &scores[first..scores.len().min(first + BLOCK)];
        }
        let block = block.iter().map(|score| (score - max) * factor).collect();
        Ok(first + self.draw_one(block)?)
    }

    fn draw_one(&mut self, scores: Vec<f32>) -> Result<usize, EvalError> {
        let count = scores.len();
        if count == 0 {
            return Err(candle_core::Error::Msg("no token is left to draw".to_owned()).into());
        }
        Ok(self.draws.sample(&Tensor::from_vec(scores, count, &Device::Cpu)?)? as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores that fall off slowly, in an order of their own, so that every block has some weight.
    fn scores() -> Vec<f32> {
        (0..1500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6).collect()
    }

    /// Draws in two stages come from the distribution: χ² over 30 groups of tokens.
    #[test]
    fn drawn_tokens_follow_the_distribution() {
        let logits = scores();
        for (temperature, top_k) in [(1.0, None), (0.7, None), (1.3, Some(900)), (1.0, Some(40))] {
            let options = SamplingOptions { temperature, top_k, ..SamplingOptions::default() };
            let expected = options.distribution(&logits, &[]).probabilities;
            let mut sampler = Sampler::new(&options, 3);
            let mut counts = vec![0u32; logits.len()];
            let draws = 20_000;
            for _ in 0..draws {
                counts
                    [sampler.next(&logits, &Place::after_prompt(&[])).expect("a draw") as usize] +=
                    1;
            }
            assert!(counts.iter().zip(&expected).all(|(count, p)| *count == 0 || *p > 0.0));
            let groups = counts.chunks(50).zip(expected.chunks(50));
            let distance: f64 = groups
                .map(|(counts, p)| {
                    let expected = p.iter().sum::<f64>() * f64::from(draws);
                    let found = f64::from(counts.iter().sum::<u32>());
                    (found - expected).powi(2) / expected.max(1e-9)
                })
                .sum();
            // 29 degrees of freedom: above 66 once in ten thousand.
            assert!(distance < 66.0, "temperature {temperature}, top-k {top_k:?}: {distance}");
        }
    }

    #[test]
    fn the_penalty_meets_each_token_that_occurred_once() {
        let options = SamplingOptions { repetition_penalty: 2.0, ..SamplingOptions::default() };
        let logits = [4.0, 3.0, -1.0, 2.5];
        assert_eq!(options.penalized(&logits, &[0, 2, 0, 99]), [2.0, 3.0, -2.0, 2.5]);
        let mut sampler = Sampler::new(&options, 0);
        assert_eq!(sampler.next(&logits, &Place::after_prompt(&[0, 2])).expect("a token"), 1);
        assert_eq!(sampler.next(&logits, &Place::after_prompt(&[0, 2, 1])).expect("a token"), 3);
        assert_eq!(sampler.next(&logits, &Place::after_prompt(&[0, 2, 1, 3])).expect("a token"), 0);
    }
    #[test]
    fn a_temperature_changes_evenly_and_then_stays() {
        let ramp = |from, to, tokens| SamplingOptions {
            temperature: from,
            temperature_ramp: Some(TemperatureRamp { to, tokens }),
            ..SamplingOptions::default()
        };
        let falls = ramp(1.0, 0.5, 3);
        let found: Vec<f64> = (0..5).map(|token| falls.temperature_at(token)).collect();
        assert_eq!(found, [1.0, 0.75, 0.5, 0.5, 0.5]);
        assert_eq!(ramp(1.0, 0.5, 0).temperature_at(0), 0.5);
        assert_eq!(ramp(1.0, 0.5, 1).temperature_at(0), 0.5);
        assert_eq!(SamplingOptions::default().temperature_at(7), 0.0);
    }

    /// From the most probable token to the whole distribution, and back.
    #[test]
    fn a_token_is_drawn_at_the_temperature_of_its_place() {
        let logits = scores();
        let best = most_probable(&logits) as u32;
        let seen = [7; 4];
        let place = |length| Place { seen: &seen[..length], prompt_len: 1, stop_ids: &[] };
        for (temperature, to, certain) in [(0.0, 2.0, 0), (2.0, 0.0, 2)] {
            let temperature_ramp = Some(TemperatureRamp { to, tokens: 3 });
            let options =
                SamplingOptions { temperature, temperature_ramp, ..SamplingOptions::default() };
            for token in 0..3 {
                let mut sampler = Sampler::new(&options, 0);
                let place = place(1 + token);
                let differs =
                    (0..50).any(|_| sampler.next(&logits, &place).expect("a draw") != best);
                assert_eq!(differs, token != certain, "{temperature} to {to}, token {token}");
                let plain = SamplingOptions {
                    temperature: options.temperature_at(token),
                    ..SamplingOptions::default()
                };
                let expected = plain.distribution(&logits, &[]);
                assert_eq!(options.distribution_at(&logits, &place), expected);
            }
        }
    }

    #[test]
    fn settings_that_are_missing_are_off() {
        let read: SamplingOptions =
            serde_json::from_str(r#"{"temperature": 0.5, "logit_bias": {"7": -1.5}}"#)
                .expect("options");
        let logit_bias = BTreeMap::from([(7, -1.5)]);
        let expected =
            SamplingOptions { temperature: 0.5, logit_bias, ..SamplingOptions::default() };
        assert_eq!(read, expected);
        assert!(read.changes_logits() && !SamplingOptions::default().changes_logits());
    }
}
