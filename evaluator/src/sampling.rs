//! Choosing the next token, with the meaning that transformers gives to each setting.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use serde::{Deserialize, Serialize};

use crate::EvalError;

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
        let mut scores = logits.to_vec();
        if (self.repetition_penalty - 1.0).abs() > f64::EPSILON {
            let penalty = self.repetition_penalty as f32;
            for id in seen.iter().collect::<BTreeSet<_>>() {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
                }
            }
        }
        scores
    }

    /// The probabilities after every setting, in the order of transformers: repetition penalty,
    /// temperature, top-k, top-p, min-p.
    pub fn distribution(&self, logits: &[f32], seen: &[u32]) -> Distribution {
        let mut scores: Vec<f64> =
            self.penalized(logits, seen).iter().map(|score| f64::from(*score)).collect();
        if self.temperature > 0.0 {
            for score in &mut scores {
                *score /= self.temperature;
            }
        }
        if let Some(k) = self.top_k {
            keep_top_k(&mut scores, k);
        }
        if let Some(p) = self.top_p {
            keep_top_p(&mut scores, p);
        }
        if let Some(p) = self.min_p {
            keep_min_p(&mut scores, p);
        }
        Distribution { probabilities: softmax(&scores) }
    }
}

/// Draws tokens, one stream of randomness for each row.
pub(crate) struct Sampler {
    options: SamplingOptions,
    draws: LogitsProcessor,
}

impl Sampler {
    pub(crate) fn new(options: &SamplingOptions, row: usize) -> Self {
        let seed = options.seed.wrapping_add((row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let draws = LogitsProcessor::from_sampling(seed, Sampling::All { temperature: 1.0 });
        Self { options: options.clone(), draws }
    }

    pub(crate) fn next(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, EvalError> {
        if self.options.temperature <= 0.0 {
            return Ok(most_probable(&self.options.penalized(logits, seen)));
        }
        let distribution = self.options.distribution(logits, seen);
        let scores: Vec<f32> = distribution.probabilities.iter().map(|p| p.ln() as f32).collect();
        let count = scores.len();
        Ok(self.draws.sample(&Tensor::from_vec(scores, count, &Device::Cpu)?)?)
    }
}

/// The first of the largest.
pub(crate) fn most_probable(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (id, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = id;
        }
    }
    best as u32
}

/// ln Σ exp.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit));
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    max + sum.ln()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().fold(f64::NEG_INFINITY, |max, score| max.max(*score));
    let exps: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

/// Everything below the k-th largest score goes; ties with it stay.
fn keep_top_k(scores: &mut [f64], k: usize) {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    if let Some(least) = sorted.get(k.clamp(1, scores.len()) - 1).copied() {
        drop_where(scores, |score| score < least);
    }
}

/// The least probable tokens go as long as their probabilities sum to at most 1 − p; one stays.
fn keep_top_p(scores: &mut [f64], p: f64) {
    let probabilities = softmax(scores);
    let mut ascending: Vec<usize> = (0..scores.len()).collect();
    ascending.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let mut sum = 0.0;
    let last = ascending.pop();
    for id in ascending {
        sum += probabilities[id];
        if sum > 1.0 - p {
            break;
        }
        scores[id] = f64::NEG_INFINITY;
    }
    debug_assert!(last.is_some());
}

fn keep_min_p(scores: &mut [f64], p: f64) {
    let probabilities = softmax(scores);
    let most = probabilities.iter().fold(0.0, |most: f64, p| most.max(*p));
    for (score, probability) in scores.iter_mut().zip(probabilities) {
        if probability < p * most {
            *score = f64::NEG_INFINITY;
        }
    }
}

fn drop_where(scores: &mut [f64], drop: impl Fn(f64) -> bool) {
    for score in scores.iter_mut().filter(|score| drop(**score)) {
        *score = f64::NEG_INFINITY;
    }
}
