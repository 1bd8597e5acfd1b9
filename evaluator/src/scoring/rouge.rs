//! ROUGE-L (Lin 2004): the longest sequence of words that two texts have in common.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::porter;

/// Words of either text that are compared; further ones count as if they were not there.
const MAX_WORDS: usize = 8192;

/// ROUGE-L's F1, as the package `rouge-score` has it: words are runs of `a` to `z` and digits in
/// lower case. Of either text, the first 8192 words count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RougeL {
    /// Words of more than three letters are compared by their stems.
    pub stemmer: bool,
}

impl RougeL {
    pub(super) const SETTINGS: &[&str] = &["stemmer"];

    /// F1 of precision and recall, from 0 to 1.
    pub fn f1(self, answer: &str, reference: &str) -> f64 {
        let (answer, reference) = (self.words(answer), self.words(reference));
        let mut ids = HashMap::new();
        let (answer, reference) = (numbered(&answer, &mut ids), numbered(&reference, &mut ids));
        let common = longest_common(&answer, &reference) as f64;
        if common == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
        2.0 * precision * recall / (precision + recall)
    }

    fn words(self, text: &str) -> Vec<String> {
        let lower = text.to_lowercase();
        let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
        let words = words.filter(|word| !word.is_empty()).take(MAX_WORDS);
        words
            .map(
                |word| {
                    if self.stemmer && word.len() > 3 {
                        porter::stem(word)
                    } else {
                        word.to_owned()
                    }
                },
            )
            .collect()
    }
}

/// A number for each word, the same for the same word.
fn numbered<'a>(words: &'a [String], ids: &mut HashMap<&'a str, u32>) -> Vec<u32> {
    words
        .iter()
        .map(|word| {
            let next = ids.len() as u32;
            *ids.entry(word.as_str()).or_insert(next)
        })
        .collect()
}

/// Length of the longest common subsequence, in time O(n·m) and memory O(m).
fn longest_common(a: &[u32], b: &[u32]) -> usize {
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    // lengths[j] is that of the first words of `a` so far and the first j of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if word == other { diagonal + 1 } else { above.max(lengths[j]) };
            diagonal = above;
        }
    }
    start + end + lengths.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition, without a table that is used again.
    fn by_definition(a: &[u32], b: &[u32]) -> usize {
        match (a, b) {
            ([], _) | (_, []) => 0,
            ([x, a @ ..], [y, b @ ..]) if x == y => 1 + by_definition(a, b),
            ([_, shorter @ ..], [_, other @ ..]) => {
                by_definition(shorter, b).max(by_definition(a, other))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_longest_common_sequence_is_found(
            a in proptest::collection::vec(0u32..4, 0..9),
            b in proptest::collection::vec(0u32..4, 0..9),
        ) {
            prop_assert_eq!(longest_common(&a, &b), by_definition(&a, &b));
        }
    }

    #[test]
    fn order_counts_and_what_is_between_does_not() {
        let rouge = RougeL::default();
        assert_eq!(rouge.f1("The cat sat.", "the CAT -- sat"), 1.0);
        assert_eq!(rouge.f1("police killed the gunman", "police kill the gunman"), 0.75);
        assert_eq!(rouge.f1("the gunman kill police", "police kill the gunman"), 0.5);
        assert_eq!(rouge.f1("", "police"), 0.0);
        assert_eq!(rouge.f1("", ""), 0.0);
        assert_eq!(RougeL { stemmer: true }.f1("running dogs", "run dog"), 1.0);
        assert_eq!(rouge.f1("running dogs", "run dog"), 0.0);
    }

    #[test]
    fn a_long_text_counts_in_part() {
        let words: Vec<String> = (0..MAX_WORDS + 100).map(|n| n.to_string()).collect();
        let (all, some) = (words.join(" "), words[..MAX_WORDS].join(" "));
        assert_eq!(RougeL::default().f1(&all, &some), 1.0);
    }
}
