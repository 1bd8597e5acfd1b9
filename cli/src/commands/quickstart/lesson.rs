//! What the small model is to learn: short sentences in German, word by word.
//!
//! There are 6144 of them. Training sees some, evaluation asks for others, so an answer that is
//! right was put together, not remembered.

use serde_json::{Value, json};

const NUMBERS: [(&str, &str); 8] = [
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
    ("seven", "sieben"),
    ("eight", "acht"),
    ("nine", "neun"),
];
const COLOURS: [(&str, &str); 8] = [
    ("red", "rote"),
    ("green", "grüne"),
    ("blue", "blaue"),
    ("black", "schwarze"),
    ("white", "weiße"),
    ("brown", "braune"),
    ("yellow", "gelbe"),
    ("grey", "graue"),
];
const ANIMALS: [(&str, &str); 12] = [
    ("cats", "Katzen"),
    ("dogs", "Hunde"),
    ("birds", "Vögel"),
    ("horses", "Pferde"),
    ("cows", "Kühe"),
    ("bees", "Bienen"),
    ("foxes", "Füchse"),
    ("owls", "Eulen"),
    ("frogs", "Frösche"),
    ("bears", "Bären"),
    ("mice", "Mäuse"),
    ("ducks", "Enten"),
];
const VERBS: [(&str, &str); 8] = [
    ("sleep", "schlafen"),
    ("eat", "essen"),
    ("sing", "singen"),
    ("dance", "tanzen"),
    ("wait", "warten"),
    ("play", "spielen"),
    ("swim", "schwimmen"),
    ("dream", "träumen"),
];

/// Sentences in all.
const COUNT: usize = NUMBERS.len() * COLOURS.len() * ANIMALS.len() * VERBS.len();
/// Has no factor in common with `COUNT`, so that its multiples reach every sentence once.
const STRIDE: usize = 2741;

/// Sentences to train on, and others to ask for.
pub(super) fn sentences(train: usize, unseen: usize) -> (Vec<Value>, Vec<Value>) {
    let mut all = (0..COUNT).map(|index| record(index * STRIDE % COUNT));
    let first = all.by_ref().take(train).collect();
    (first, all.take(unseen).collect())
}

fn record(index: usize) -> Value {
    let mut index = index;
    let mut pick = |words: &[(&'static str, &'static str)]| {
        let word = words[index % words.len()];
        index /= words.len();
        word
    };
    let words = [pick(&NUMBERS), pick(&COLOURS), pick(&ANIMALS), pick(&VERBS)];
    let english = words.map(|word| word.0).join(" ");
    let german = words.map(|word| word.1).join(" ");
    json!({
        "prompt": [{ "role": "user", "content": format!("Translate into German: {english}") }],
        "completion": [{ "role": "assistant", "content": german }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_sentence_is_trained_and_asked() {
        let (train, unseen) = sentences(1500, 100);
        let all: BTreeSet<String> = train.iter().chain(&unseen).map(Value::to_string).collect();
        assert_eq!(all.len(), 1600);
        let (all, _) = sentences(COUNT, 0);
        assert_eq!(all.iter().map(Value::to_string).collect::<BTreeSet<_>>().len(), COUNT);
    }
}
