//! Choosing the next token, with the meaning that transformers gives to each setting.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use chandler_model::logits::{self, most_probable};
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::candidates::Candidates;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
            seed: 42,
        }
    }
}

/// What a token is drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// For each token its probability; 0 where it was ruled out.
    pub probabilities: Vec<f64>,
}

impl SamplingOptions {
    /// The scores after the repetition penalty: what greedy decoding takes the largest of.
    pub fn penalized(&self, logits: &[f32], seen: &[u32]) -> Vec<f32> {
        let mut occurred = Occurred::default();
        occurred.extend(seen);
        let mut scores = logits.to_vec();
        self.penalize(&mut scores, &occurred);
        scores
    }

    fn penalizes(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > f64::EPSILON
    }

    fn penalize(&self, scores: &mut [f32], occurred: &Occurred) {
        if self.penalizes() {
            let penalty = self.repetition_penalty as f32;
            for id in &occurred.ids {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
                }
            }
        }
    }

    /// The probabilities after every setting, in the order of transformers: repetition penalty,
    /// temperature, top-k, top-p, min-p.
    pub fn distribution(&self, logits: &[f32], seen: &[u32]) -> Distribution {
        let scores = self.penalized(logits, seen);
        let candidates = Candidates::of(self, &scores)
            .unwrap_or_else(|| Candidates::all(&scores, self.divisor()));
        let mut probabilities = vec![0.0; logits.len()];
        for (id, probability) in candidates.ids.iter().zip(candidates.probabilities()) {
            probabilities[*id as usize] = probability;
        }
        Distribution { probabilities }
    }

    /// What scores are divided by.
    pub(crate) fn divisor(&self) -> f64 {
        if self.temperature > 0.0 { self.temperature } else { 1.0 }
    }
}

/// The ids of a text, each once.
#[derive(Default)]
struct Occurred {
    ids: Vec<u32>,
    /// A bit for each id up to the largest.
    known: Vec<u64>,
    /// Tokens of the text that have been looked at.
    read: usize,
}

impl Occurred {
    /// `text` begins with what was given before.
    fn extend(&mut self, text: &[u32]) {
        for id in &text[self.read.min(text.len())..] {
            let (word, bit) = (*id as usize / 64, 1 << (id % 64));
            if word >= self.known.len() {
                self.known.resize(word + 1, 0);
            }
            if self.known[word] & bit == 0 {
                self.known[word] |= bit;
                self.ids.push(*id);
            }
        }
        self.read = text.len();
    }
}

/// Draws tokens, one stream of randomness for each row.
pub(crate) struct Sampler {
    options: SamplingOptions,
    draws: LogitsProcessor,
    occurred: Occurred,
    /// Penalized scores, used again for each token.
    scores: Vec<f32>,
}

/// Scores among which one draw decides; of more, a first draw decides on a block of as many.
const BLOCK: usize = 512;

impl Sampler {
    pub(crate) fn new(options: &SamplingOptions, row: usize) -> Self {
        let seed = options.seed.wrapping_add((row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let draws = LogitsProcessor::from_sampling(seed, Sampling::All { temperature: 1.0 });
        let (occurred, scores) = (Occurred::default(), vec![]);
        Self { options: options.clone(), draws, occurred, scores }
    }

    /// The token after `seen`, which begins with what it was at the last call.
    pub(crate) fn next(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, EvalError> {
        let mut scores = std::mem::take(&mut self.scores);
        let penalized = if self.options.penalizes() {
            self.occurred.extend(seen);
            scores.clear();
            scores.extend_from_slice(logits);
            self.options.penalize(&mut scores, &self.occurred);
            &scores
        } else {
            logits
        };
        let id = self.choose(penalized);
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
                counts[sampler.next(&logits, &[]).expect("a draw") as usize] += 1;
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
        assert_eq!(sampler.next(&logits, &[0, 2]).expect("a token"), 1);
        assert_eq!(sampler.next(&logits, &[0, 2, 1]).expect("a token"), 3);
        assert_eq!(sampler.next(&logits, &[0, 2, 1, 3]).expect("a token"), 0);
    }
}
