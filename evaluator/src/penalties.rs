//! What lowers, raises or rules out tokens by what has been said, before one is chosen.

use std::collections::BTreeMap;

use crate::sampling::SamplingOptions;

/// Where the next token stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The prompt and the answer so far.
    pub seen: &'a [u32],
    /// How much of it is the prompt.
    pub prompt_len: usize,
    /// Tokens that would end the answer.
    pub stop_ids: &'a [u32],
}

impl<'a> Place<'a> {
    /// At the beginning of an answer that no token ends.
    pub fn after_prompt(prompt: &'a [u32]) -> Self {
        Self { seen: prompt, prompt_len: prompt.len(), stop_ids: &[] }
    }

    /// The answer so far.
    pub fn answer(&self) -> &'a [u32] {
        &self.seen[self.prompt_len.min(self.seen.len())..]
    }
}

impl SamplingOptions {
    /// Whether scores are anything but the logits.
    pub(crate) fn changes_logits(&self) -> bool {
        self.penalizes_repetition()
            || self.penalizes_frequency()
            || !self.logit_bias.is_empty()
            || self.no_repeat_ngram_size > 0
            || self.min_new_tokens > 0
    }

    fn penalizes_repetition(&self) -> bool {
        (self.repetition_penalty - 1.0).abs() > f64::EPSILON
    }

    fn penalizes_frequency(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// What the settings have to remember of one answer, from token to token.
#[derive(Default)]
pub(crate) struct Penalties {
    occurred: Occurred,
    counted: Counted,
    /// Tokens that were ruled out, with the scores that they had.
    ruled_out: Vec<(usize, f32)>,
}

impl Penalties {
    /// Changes the scores of the token at `place`, where `seen` begins with what it was at the last
    /// call: by the bias, the penalty on repetition, those on frequency and presence, and at last
    /// by what is ruled out. Where that leaves no token at all, nothing is ruled out.
    pub(crate) fn apply(&mut self, options: &SamplingOptions, scores: &mut [f32], place: &Place) {
        for (id, bias) in &options.logit_bias {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score += bias;
            }
        }
        if options.penalizes_repetition() {
            self.occurred.extend(place.seen);
            let penalty = options.repetition_penalty as f32;
            for id in &self.occurred.ids {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
                }
            }
        }
        if options.penalizes_frequency() {
            self.counted.extend(place.answer());
            for (id, count) in &self.counted.counts {
                if let Some(score) = scores.get_mut(*id as usize) {
                    let frequency = f64::from(*count) * options.frequency_penalty;
                    *score -= (frequency + options.presence_penalty) as f32;
                }
            }
        }
        self.rule_out(options, scores, place);
    }

    fn rule_out(&mut self, options: &SamplingOptions, scores: &mut [f32], place: &Place) {
        self.ruled_out.clear();
        let mut rule_out = |id: u32| {
            if let Some(score) = scores.get_mut(id as usize) {
                self.ruled_out.push((id as usize, *score));
                *score = f32::NEG_INFINITY;
            }
        };
        repeats(options.no_repeat_ngram_size, place.seen, &mut rule_out);
        if place.answer().len() < options.min_new_tokens {
            place.stop_ids.iter().copied().for_each(&mut rule_out);
        }
        let none_left = || scores.iter().all(|score| *score == f32::NEG_INFINITY);
        if !self.ruled_out.is_empty() && none_left() {
            for (id, score) in self.ruled_out.iter().rev() {
                scores[*id] = *score;
            }
        }
    }
}

/// Calls `each` with every token that would make the last `size` tokens ones that have occurred in
/// a row before.
fn repeats(size: usize, seen: &[u32], mut each: impl FnMut(u32)) {
    if size == 0 || seen.len() < size {
        return;
    }
    let begun = &seen[seen.len() + 1 - size..];
    for ngram in seen.windows(size) {
        if let Some((last, before)) = ngram.split_last()
            && before == begun
        {
            each(*last);
        }
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

/// How often each id of a text occurs in it.
#[derive(Default)]
struct Counted {
    counts: BTreeMap<u32, u32>,
    /// Tokens of the text that have been counted.
    read: usize,
}

impl Counted {
    /// `text` begins with what was given before.
    fn extend(&mut self, text: &[u32]) {
        for id in &text[self.read.min(text.len())..] {
            *self.counts.entry(*id).or_default() += 1;
        }
        self.read = text.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    fn at<'a>(seen: &'a [u32], prompt_len: usize, stop_ids: &'a [u32]) -> Place<'a> {
        Place { seen, prompt_len, stop_ids }
    }

    #[test]
    fn what_was_answered_counts_and_the_prompt_does_not() {
        let options = SamplingOptions {
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SamplingOptions::default()
        };
        let logits = [1.0, 1.0, -1.0, 0.0];
        let place = at(&[0, 0, 2, 1, 2, 99], 2, &[]);
        assert_eq!(options.penalized_at(&logits, &place), [1.0, 0.25, -2.25, 0.0]);
        assert_eq!(options.penalized(&logits, &[0, 2, 2]), logits);
        let presence = SamplingOptions { frequency_penalty: 0.0, ..options };
        assert_eq!(presence.penalized_at(&logits, &place), [1.0, 0.75, -1.25, 0.0]);
        let reward = SamplingOptions { presence_penalty: -1.0, ..presence };
        assert_eq!(reward.penalized_at(&logits, &place), [1.0, 2.0, 0.0, 0.0]);
    }

    #[test]
    fn a_bias_is_added_before_repetition_is_penalized() {
        let options = SamplingOptions {
            logit_bias: BTreeMap::from([(0, 3.0), (2, -4.0), (3, f32::NEG_INFINITY), (99, 1.0)]),
            repetition_penalty: 2.0,
            ..SamplingOptions::default()
        };
        let found = options.penalized(&[1.0, 1.0, 2.0, 5.0], &[0, 2]);
        assert_eq!(found, [2.0, 1.0, -4.0, OUT]);
    }

    #[test]
    fn no_run_of_tokens_comes_twice() {
        let out = |size, seen: &[u32]| {
            let options =
                SamplingOptions { no_repeat_ngram_size: size, ..SamplingOptions::default() };
            let scores = options.penalized(&[0.0; 5], seen);
            let out = scores.iter().enumerate().filter(|(_, score)| **score == OUT);
            out.map(|(id, _)| id).collect::<Vec<_>>()
        };
        // After 1 came 2 and 3.
        assert_eq!(out(2, &[1, 2, 1, 3, 0, 1]), [2, 3]);
        assert_eq!(out(3, &[1, 2, 3, 4, 1, 2]), [3]);
        assert_eq!(out(3, &[1, 2, 3, 4, 2, 1]), [0usize; 0]);
        assert_eq!(out(2, &[1, 1]), [1]);
        assert_eq!(out(1, &[1, 4, 1]), [1, 4]);
        assert_eq!(out(3, &[1, 1]), [0usize; 0]);
        assert_eq!(out(0, &[1, 1]), [0usize; 0]);
        assert_eq!(out(2, &[]), [0usize; 0]);
    }

    #[test]
    fn no_answer_ends_before_its_time() {
        let options = SamplingOptions { min_new_tokens: 2, ..SamplingOptions::default() };
        let penalized =
            |seen: &[u32]| options.penalized_at(&[1.0, 2.0, 3.0], &at(seen, 1, &[2, 0, 9]));
        assert_eq!(penalized(&[0]), [OUT, 2.0, OUT]);
        assert_eq!(penalized(&[0, 1]), [OUT, 2.0, OUT]);
        assert_eq!(penalized(&[0, 1, 1]), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn where_no_token_is_left_none_is_ruled_out() {
        let options = SamplingOptions {
            no_repeat_ngram_size: 1,
            min_new_tokens: 5,
            ..SamplingOptions::default()
        };
        let penalized = |seen: &[u32]| options.penalized_at(&[1.0, 2.0, 3.0], &at(seen, 0, &[2]));
        assert_eq!(penalized(&[0]), [OUT, 2.0, OUT]);
        assert_eq!(penalized(&[0, 1, 1]), [1.0, 2.0, 3.0]);
    }

    /// All settings at once, each by its definition, from the whole text.
    fn by_definition(options: &SamplingOptions, logits: &[f32], place: &Place) -> Vec<f32> {
        let (seen, answer) = (place.seen, &place.seen[place.prompt_len..]);
        let changed = |id: usize| {
            let is_it = |other: &&u32| **other as usize == id;
            let mut score = logits[id] + options.logit_bias.get(&(id as u32)).unwrap_or(&0.0);
            if seen.iter().any(|other| is_it(&other)) {
                let penalty = options.repetition_penalty as f32;
                score = if score < 0.0 { score * penalty } else { score / penalty };
            }
            let count = answer.iter().filter(is_it).count() as f64;
            let presence = if count > 0.0 { options.presence_penalty } else { 0.0 };
            score - (count * options.frequency_penalty + presence) as f32
        };
        let allowed = |id: usize| {
            let size = options.no_repeat_ngram_size;
            let mut next = seen.to_vec();
            next.push(id as u32);
            let ngram = &next[next.len().saturating_sub(size)..];
            let repeated =
                size > 0 && seen.len() >= size && seen.windows(size).any(|other| other == ngram);
            let ends = place.stop_ids.contains(&(id as u32));
            !repeated && (!ends || answer.len() >= options.min_new_tokens)
        };
        let scores: Vec<f32> = (0..logits.len()).map(changed).collect();
        if !(0..logits.len()).any(allowed) {
            return scores;
        }
        let ruled = |(id, score)| if allowed(id) { score } else { OUT };
        scores.into_iter().enumerate().map(ruled).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_text_that_grows_is_treated_as_one_that_is_whole(
            seen in proptest::collection::vec(0..6u32, 1..30),
            prompt in 0..10usize,
            logits in proptest::collection::vec(-4.0..4.0f32, 6),
            (repetition_penalty, frequency_penalty, presence_penalty) in
                (0.5..2.0f64, -2.0..2.0f64, -2.0..2.0f64),
            bias in proptest::collection::btree_map(0..8u32, -3.0..3.0f32, 0..4),
            (no_repeat_ngram_size, min_new_tokens) in (0..5usize, 0..20usize),
            stop_ids in proptest::collection::vec(0..8u32, 0..3),
        ) {
            let options = SamplingOptions {
                repetition_penalty,
                frequency_penalty,
                presence_penalty,
                logit_bias: bias,
                no_repeat_ngram_size,
                min_new_tokens,
                ..SamplingOptions::default()
            };
            let prompt_len = prompt.min(seen.len());
            let mut penalties = Penalties::default();
            for length in prompt_len..=seen.len() {
                let place = at(&seen[..length], prompt_len, &stop_ids);
                let mut found = logits.clone();
                penalties.apply(&options, &mut found, &place);
                prop_assert_eq!(&found, &by_definition(&options, &logits, &place));
                prop_assert_eq!(&found, &options.penalized_at(&logits, &place));
            }
        }
    }
}
