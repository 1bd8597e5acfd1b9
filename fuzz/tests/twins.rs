//! Every target on a bounded number of inputs, each of which proptest makes smaller where it fails.
//!
//! `CHANDLER_FUZZ_CASES` changes their number.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use chandler_fuzz::{Corpus, Edit, MOST_MILLIS, edited, target};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// An unoptimised build takes several times as long as what people run.
const SLOWNESS: u128 = 10;

fn edit() -> impl Strategy<Value = Edit> {
    let number = any::<usize>();
    prop_oneof![
        (number, any::<u8>()).prop_map(|(at, bit)| Edit::Flip { at, bit }),
        (number, prop::collection::vec(any::<u8>(), 1..5))
            .prop_map(|(at, bytes)| Edit::Bytes { at, bytes }),
        (number, number).prop_map(|(at, word)| Edit::Word { at, word }),
        (number, number).prop_map(|(at, number)| Edit::Number { at, number }),
        (number, 0..64usize).prop_map(|(at, length)| Edit::Remove { at, length }),
        (number, 0..64usize, 0..64usize).prop_map(|(at, length, times)| Edit::Repeat {
            at,
            length,
            times
        }),
        (number, number, number, 0..256usize).prop_map(|(at, other, from, length)| Edit::Splice {
            at,
            other,
            from,
            length
        }),
    ]
}

fn holds(name: &str) {
    let target = target(name).unwrap();
    let corpus = Corpus::read(name).unwrap();
    corpus.inputs.iter().for_each(|input| target.run(input));
    let cases = std::env::var("CHANDLER_FUZZ_CASES").map_or(400, |cases| cases.parse().unwrap());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // The same inputs each time: a test that finds something now and then is for the program.
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let inputs = (any::<usize>(), prop::collection::vec(edit(), 1..7));
    let ran = runner.run(&inputs, |(seed, edits)| {
        let input = edited(&corpus, seed, &edits);
        let began = Instant::now();
        target.run(&input);
        let millis = began.elapsed().as_millis();
        prop_assert!(millis < MOST_MILLIS * SLOWNESS, "{millis} ms: {:?}", input);
        Ok(())
    });
    ran.unwrap();
}

macro_rules! twins {
    ($($name:ident)*) => { $(#[test] fn $name() { holds(stringify!($name)); })* };
}

twins! {
    jsonl_file jsonl_row chat_template tokenizer_json config_toml config_json safetensors manifest
    control_request openai_request
}

#[test]
fn every_target_has_a_twin_and_a_libfuzzer_target() {
    let here = include_str!("twins.rs");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/fuzz_targets");
    for target in chandler_fuzz::TARGETS {
        assert!(here.contains(target.name), "{}", target.name);
        let text = std::fs::read_to_string(folder.join(format!("{}.rs", target.name))).unwrap();
        assert!(text.contains(&format!("\"{}\"", target.name)));
    }
}
