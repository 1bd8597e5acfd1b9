//! What holds of every scorer, whatever an answer and a reference may be.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::extract::without_thinking;
use super::{Extract, Paired, Reference, Scorer, Summary, pass_at_k};

/// Every scorer as it is by default, and with much of what can be set.
fn scorers() -> Vec<Scorer> {
    let mut tables: Vec<Value> = Scorer::NAMES.into_iter().map(Value::from).collect();
    let all = json!({
        "name": "exact_match", "ignore_case": true, "ignore_punctuation": true,
        "ignore_whitespace": true, "ignore_articles": true,
    });
    let mut contains = all.clone();
    contains["name"] = "contains".into();
    tables.extend([
        all,
        contains,
        json!({ "name": "regex", "pattern": r"(\w+)\W*$", "group": 1, "which": "last" }),
        json!({ "name": "numeric", "which": "first", "tolerance": 0.5, "extract": "last_line" }),
        json!({ "name": "numeric", "marker": "####" }),
        json!({ "name": "json_equal", "extract": "fenced" }),
        json!({ "name": "exact_match", "extract": "boxed" }),
        json!({ "name": "rouge_l", "stemmer": true, "extract": { "after": ":" } }),
        json!({ "name": "chrf", "word_order": 2, "strip_thinking": false }),
    ]);
    tables.into_iter().map(|table| serde_json::from_value(table).unwrap()).collect()
}

/// Unicode of all kinds, and pieces that mean something to a scorer.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[a-c ]{0,12}",
        "[-+$€.,%eE0-9 ]{0,12}",
        proptest::sample::select(vec![
            "<think>",
            "</think>",
            "think>",
            "\\boxed{",
            "{",
            "}",
            "\\",
            "```",
            "\n```json\n",
            "~~~",
            "####",
            "\n",
            "[1, 2]",
            "{\"a\": 1}",
            "\"",
            "−",
            "日本",
            "👩‍👩‍👧",
            "İ",
            "the",
            "\u{1c}",
        ])
        .prop_map(str::to_owned),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn binary() -> impl Strategy<Value = Vec<f64>> {
    proptest::collection::vec(proptest::sample::select(vec![0.0, 1.0]), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_score_is_from_0_to_1(answer in text(), reference in text()) {
        for scorer in scorers() {
            for reference in [None, Some(Reference::from(reference.as_str()))] {
                if let Ok(score) = scorer.score(&answer, reference.as_ref()) {
                    let expected = reference.is_some() || !scorer.needs_reference();
                    prop_assert_eq!(score.is_some(), expected, "{}", scorer.name());
                    let fits = |score: f64| (0.0..=1.0).contains(&score);
                    let binary = |score: f64| score == 0.0 || score == 1.0;
                    prop_assert!(score.is_none_or(fits), "{:?}: {score:?}", scorer);
                    prop_assert!(!scorer.is_binary() || score.is_none_or(binary));
                }
            }
        }
    }

    #[test]
    fn some_scores_are_symmetric(a in text(), b in text()) {
        let tables = [
            json!({ "name": "exact_match", "ignore_punctuation": true, "strip_thinking": false }),
            json!({ "name": "rouge_l", "strip_thinking": false }),
            json!({ "name": "rouge_l", "stemmer": true, "strip_thinking": false }),
            json!({ "name": "chrf", "beta": 1.0, "word_order": 2, "strip_thinking": false }),
        ];
        for table in tables {
            let scorer: Scorer = serde_json::from_value(table).unwrap();
            let score = |answer: &str, reference: &str| {
                scorer.score(answer, Some(&reference.into())).unwrap().unwrap()
            };
            prop_assert!((score(&a, &b) - score(&b, &a)).abs() < 1e-12, "{}", scorer.name());
        }
    }

    #[test]
    fn a_text_is_its_own_best_answer(text in text()) {
        let text = without_thinking(&text).into_owned();
        prop_assume!(text.chars().any(|c| c.is_ascii_alphanumeric()));
        for name in ["exact_match", "contains", "rouge_l", "chrf"] {
            let scorer = Scorer::named(name).unwrap();
            let scorer = Scorer { strip_thinking: false, ..scorer };
            let score = scorer.score(&text, Some(&text.as_str().into())).unwrap().unwrap();
            prop_assert!((score - 1.0).abs() < 1e-12, "{name}: {score}");
        }
    }

    #[test]
    fn a_part_is_of_the_answer(answer in text()) {
        let parts = [Extract::LastLine, Extract::Boxed, Extract::Fenced, Extract::After(":".into())];
        for extract in parts {
            prop_assert!(extract.of(&answer).is_none_or(|part| answer.contains(part)));
        }
        let spoken = without_thinking(&answer);
        prop_assert!(spoken.len() <= answer.len());
    }

    #[test]
    fn an_interval_holds_its_mean(
        graded in proptest::collection::vec(0.0..=1.0, 0..40),
        hits in binary(),
    ) {
        for scores in [graded, hits] {
            let Summary { value, low, high, count } = Summary::of(&scores);
            prop_assert_eq!(count, scores.len());
            prop_assert_eq!(value.is_some(), count > 0);
            if let (Some(value), Some(low), Some(high)) = (value, low, high) {
                prop_assert!(count > 1 && low <= value && value <= high);
                prop_assert!(0.0 <= low && high <= 1.0);
            }
        }
    }

    #[test]
    fn a_comparison_turns_around(
        pairs in proptest::collection::vec((0.0..=1.0, 0.0..=1.0), 0..30),
        hits in proptest::collection::vec((0..2u8, 0..2u8), 0..30),
    ) {
        let hits = hits.into_iter().map(|(a, b)| (f64::from(a), f64::from(b))).collect();
        for pairs in [pairs, hits] {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let (there, back) = (Paired::of(&a, &b).unwrap(), Paired::of(&b, &a).unwrap());
            prop_assert_eq!((there.up, there.same, there.down), (back.down, back.same, back.up));
            prop_assert!(there.p_value.is_none_or(|p| (0.0..=1.0).contains(&p)));
            prop_assert!(!(there.is_above() && there.is_below()));
            prop_assert_eq!(there.is_above(), back.is_below());
            let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
            let ends = sum(there.difference.low, back.difference.high);
            prop_assert!(ends.is_none_or(|sum| sum.abs() < 1e-12));
        }
    }

    #[test]
    fn more_tries_pass_more(samples in 1..300u64, correct in 0..300u64, k in 1..300u64) {
        if let (Some(fewer), Some(more)) =
            (pass_at_k(samples, correct, k), pass_at_k(samples, correct, k + 1))
        {
            prop_assert!(0.0 <= fewer && fewer <= more + 1e-12 && more <= 1.0);
        }
    }
}

/// Texts of 256 KiB, made to be slow.
#[test]
fn a_hostile_answer_takes_no_longer_than_its_length() {
    let fill = |piece: &str| piece.repeat((1 << 18) / piece.len());
    let pieces = [
        "<think>",
        "</think>",
        "<think></think>",
        "boxed{",
        "{",
        "[",
        "```\n",
        "9",
        "1,111",
        "1e",
        "a ",
        "ab",
        "é",
        "\n",
        "####",
        "-",
        "a b c ",
    ];
    let answers: Vec<String> = pieces.into_iter().map(fill).collect();
    let begun = Instant::now();
    for scorer in scorers() {
        for answer in &answers {
            let reference = Reference::from(format!("x {answer} y"));
            let score = scorer.score(answer, Some(&reference));
            assert!(!matches!(score, Ok(Some(score)) if !(0.0..=1.0).contains(&score)));
        }
    }
    // Some hundred scores, of milliseconds each; quadratic ones would take a minute each.
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}
