//! chrF and chrF++ (Popović 2015, 2017): character and word n-grams that two texts share.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Characters of either text that are compared; further ones count as if they were not there.
const MAX_CHARS: usize = 1 << 16;

/// Settings of chrF, with the meaning that `sacrebleu` gives to them. White space does not count.
/// Of either text, the first 65 536 characters do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chrf {
    /// Longest character n-gram.
    pub char_order: usize,
    /// Longest word n-gram: 0 is chrF, 2 is chrF++.
    pub word_order: usize,
    /// How many times as much recall weighs as precision.
    pub beta: f64,
}

impl Default for Chrf {
    fn default() -> Self {
        Self { char_order: 6, word_order: 0, beta: 2.0 }
    }
}

impl Chrf {
    pub(super) const SETTINGS: &[&str] = &["char_order", "word_order", "beta"];
    /// Longest n-gram that may be asked for.
    pub(super) const MAX_ORDER: usize = 16;

    /// The score of one answer, from 0 to 1.
    pub fn score(&self, answer: &str, reference: &str) -> f64 {
        let (answer, reference) = (first_chars(answer), first_chars(reference));
        let mut counts = vec![];
        let (a, b) = (chars(answer), chars(reference));
        counts.extend((1..=self.char_order).map(|n| Counts::of(&a, &b, n)));
        if self.word_order > 0 {
            let mut ids = HashMap::new();
            let (a, b) = (words(answer, &mut ids), words(reference, &mut ids));
            counts.extend((1..=self.word_order).map(|n| Counts::of(&a, &b, n)));
        }
        self.f_score(&counts)
    }

    /// F of the mean precision and the mean recall, over the lengths of n-grams that both have.
    fn f_score(&self, counts: &[Counts]) -> f64 {
        let effective = counts.iter().filter(|counts| counts.answer > 0 && counts.reference > 0);
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for counts in effective {
            precision += counts.common as f64 / counts.answer as f64;
            recall += counts.common as f64 / counts.reference as f64;
            orders += 1.0;
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / orders, recall / orders);
        let factor = self.beta * self.beta;
        ((1.0 + factor) * precision * recall / (factor * precision + recall)).min(1.0)
    }
}

/// How many n-grams of one length the texts have, and how many in common.
struct Counts {
    answer: usize,
    reference: usize,
    common: usize,
}

impl Counts {
    fn of(answer: &[u32], reference: &[u32], n: usize) -> Self {
        let mut left: HashMap<&[u32], usize> = HashMap::new();
        for ngram in reference.windows(n) {
            *left.entry(ngram).or_default() += 1;
        }
        let mut common = 0;
        for ngram in answer.windows(n) {
            if let Some(left) = left.get_mut(ngram)
                && *left > 0
            {
                *left -= 1;
                common += 1;
            }
        }
        let of = |text: &[u32]| (text.len() + 1).saturating_sub(n);
        Self { answer: of(answer), reference: of(reference), common }
    }
}

fn first_chars(text: &str) -> &str {
    text.char_indices().nth(MAX_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// White space as Python's `str.split` sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn chars(text: &str) -> Vec<u32> {
    text.chars().filter(|c| !is_space(*c)).map(u32::from).collect()
}

/// A number for each word; a mark of punctuation at its end, else at its beginning, is a word of
/// its own.
fn words<'a>(text: &'a str, ids: &mut HashMap<&'a str, u32>) -> Vec<u32> {
    let mut words = vec![];
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        let last = word.char_indices().last().map_or(0, |(at, _)| at);
        if last > 0 && word[last..].starts_with(|c: char| c.is_ascii_punctuation()) {
            words.extend([&word[..last], &word[last..]]);
        } else if last > 0 && word.starts_with(|c: char| c.is_ascii_punctuation()) {
            words.extend([&word[..1], &word[1..]]);
        } else {
            words.push(word);
        }
    }
    let mut number = |word| {
        let next = ids.len() as u32;
        *ids.entry(word).or_insert(next)
    };
    words.into_iter().map(&mut number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_counted() {
        let chrf = Chrf::default();
        assert_eq!(chrf.score("the cat", "the cat"), 1.0);
        assert_eq!(chrf.score("thecat", "the cat"), 1.0);
        assert_eq!(chrf.score("xyz", "the cat"), 0.0);
        assert_eq!(chrf.score("", ""), 0.0);
        // Of length 1: 1 of 2 in common, and 1 of 1; of length 2 the reference has none.
        let beta_1 = Chrf { beta: 1.0, ..chrf };
        assert!((beta_1.score("ab", "a") - 2.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn punctuation_leaves_words() {
        let mut ids = HashMap::new();
        words("(hi) (hi !", &mut ids);
        let mut known: Vec<&str> = ids.into_keys().collect();
        known.sort_unstable();
        assert_eq!(known, ["!", "(", "(hi", ")", "hi"]);
    }

    #[test]
    fn a_long_text_counts_in_part() {
        let text = "é".repeat(MAX_CHARS);
        assert_eq!(Chrf::default().score(&format!("{text}abc"), &text), 1.0);
    }
}
