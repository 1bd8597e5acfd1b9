//! Scores and statistics as `rouge-score`, `sacrebleu`, NLTK and scipy have them;
//! `fixtures/scorers/make.py` had them computed.

use std::path::Path;

use serde_json::Value;

use super::distributions::{t_97_5, t_two_sided};
use super::{Chrf, Normalize, Paired, RougeL, Summary, pass_at_k, porter};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/scorers").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    rows(value).iter().map(number).collect()
}

fn count(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn near(found: impl Into<Option<f64>>, expected: &Value, what: &Value) {
    let (found, expected) = (found.into().unwrap(), number(expected));
    assert!((found - expected).abs() < 1e-9, "{found} for {expected} of {what}");
}

#[test]
fn texts_score_as_elsewhere() {
    let texts = fixture("texts.json");
    assert!(rows(&texts).len() > 400);
    let squad = Normalize {
        ignore_case: true,
        ignore_punctuation: true,
        ignore_whitespace: true,
        ignore_articles: true,
    };
    let chrf = Chrf::default();
    for row in rows(&texts) {
        let (answer, reference) =
            (row["answer"].as_str().unwrap(), row["reference"].as_str().unwrap());
        near(RougeL { stemmer: false }.f1(answer, reference), &row["rouge_l"], row);
        near(RougeL { stemmer: true }.f1(answer, reference), &row["rouge_l_stemmed"], row);
        near(chrf.score(answer, reference), &row["chrf"], row);
        let plus_plus = Chrf { word_order: 2, ..chrf };
        near(plus_plus.score(answer, reference), &row["chrf_plus_plus"], row);
        let other = Chrf { char_order: 4, word_order: 1, beta: 1.0 };
        near(other.score(answer, reference), &row["chrf_4_1_beta_1"], row);
        let exact = squad.of(answer) == squad.of(reference);
        assert_eq!(f64::from(u8::from(exact)), number(&row["squad_exact"]), "{row}");
    }
}

#[test]
fn stems_are_those_of_nltk() {
    let stems = fixture("stems.json");
    for (word, stem) in stems.as_object().unwrap() {
        assert_eq!(porter::stem(word), stem.as_str().unwrap(), "{word}");
    }
}

#[test]
fn quantiles_and_tails_are_those_of_scipy() {
    let statistics = fixture("statistics.json");
    for row in rows(&statistics["t_97_5"]) {
        near(t_97_5(number(&row[0])), &row[1], row);
    }
    for row in rows(&statistics["t_two_sided"]) {
        near(t_two_sided(number(&row[0]), number(&row[1])), &row[2], row);
    }
}

#[test]
fn intervals_are_those_of_scipy() {
    let statistics = fixture("statistics.json");
    for row in rows(&statistics["wilson"]) {
        let found = Summary::of_hits(count(&row["hits"]), count(&row["count"]));
        near(found.low, &row["low"], row);
        near(found.high, &row["high"], row);
    }
    for row in rows(&statistics["t"]) {
        let found = Summary::of_any(&numbers(&row["values"]));
        near(found.value, &row["value"], &row["value"]);
        near(found.low, &row["low"], &row["value"]);
        near(found.high, &row["high"], &row["value"]);
    }
}

#[test]
fn pairs_are_compared_as_by_scipy() {
    let statistics = fixture("statistics.json");
    for row in rows(&statistics["paired"]) {
        let found = Paired::of(&numbers(&row["before"]), &numbers(&row["after"])).unwrap();
        near(found.difference.value, &row["value"], &row["value"]);
        near(found.difference.low, &row["low"], &row["value"]);
        near(found.difference.high, &row["high"], &row["value"]);
        near(found.p_value, &row["p"], &row["value"]);
    }
    for row in rows(&statistics["binary"]) {
        let (up, same, down) = (count(&row["up"]), count(&row["same"]), count(&row["down"]));
        let before = [vec![0.0; up], vec![0.0; same], vec![1.0; down]].concat();
        let after = [vec![1.0; up], vec![0.0; same], vec![0.0; down]].concat();
        let found = Paired::of(&before, &after).unwrap();
        near(found.p_value, &row["p"], row);
        near(found.difference.low, &row["low"], row);
        near(found.difference.high, &row["high"], row);
    }
}

#[test]
fn pass_at_k_is_that_of_exact_binomials() {
    for row in rows(&fixture("statistics.json")["pass_at_k"]) {
        let [samples, correct, k] =
            ["samples", "correct", "k"].map(|key| row[key].as_u64().unwrap());
        near(pass_at_k(samples, correct, k), &row["pass"], row);
    }
}
