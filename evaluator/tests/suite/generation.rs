//! Tokens, log-probabilities and distributions of transformers.

use std::cell::Cell;

use chandler_data::{Row, Tokenizer};
use chandler_evaluator::{Ended, EvalError, EvalScope, GenerateOptions, SamplingOptions};
use chandler_model::KvCache;
use chandler_vram::Ledger;

use crate::support::{MODELS, golden, goldens, ids, load, numbers};

/// A difference may begin only where the two best scores are within 1e-3.
#[test]
fn greedy_answers_are_those_of_transformers() {
    let mut tokens = 0;
    for name in MODELS {
        let model = load(name);
        let tokenizer = Tokenizer::open(&goldens().join("models").join(name)).unwrap();
        let expected = golden(name, "generate.json");
        for case in expected["greedy"].as_array().unwrap() {
            let options = GenerateOptions {
                max_new_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
                stop_ids: ids(&case["eos_token_ids"]),
                sampling: SamplingOptions {
                    repetition_penalty: case["repetition_penalty"].as_f64().unwrap(),
                    ..SamplingOptions::default()
                },
                batch_size: 1,
            };
            let mut scope = EvalScope::open(&model, &Ledger::new());
            let prompts = [ids(&case["prompt_ids"])];
            let found = scope.generate(&prompts, &options, &mut |_, _| None).unwrap().remove(0);
            scope.close().unwrap();
            let (wanted, margins) = (ids(&case["new_ids"]), numbers(&case["margins"]));
            let same = found.new_ids.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            if same < wanted.len() {
                assert!(margins[same] <= 1e-3, "{name}: differs at {same} of {}", wanted.len());
            } else {
                assert_eq!(found.new_ids, wanted, "{name}");
                let text = tokenizer.decode(&found.new_ids, true).unwrap();
                assert_eq!(text, case["text"].as_str().unwrap(), "{name}");
            }
            for (at, wanted) in numbers(&case["raw_logprobs"])[..same].iter().enumerate() {
                let difference = (found.logprobs[at] - wanted).abs();
                assert!(difference < 1e-4, "{name}: log-probability at {at} off by {difference}");
            }
            tokens += same;
        }
    }
    assert!(tokens > 1000, "{tokens}");
}

#[test]
fn sampling_distributions_are_those_of_transformers() {
    for name in MODELS {
        let model = load(name);
        let expected = &golden(name, "generate.json")["sampling_distributions"];
        let prompt = ids(&expected["prompt_ids"]);
        let mut cache =
            KvCache::new(model.config(), 1, prompt.len(), model.dtype(), model.device()).unwrap();
        let logits = model.forward_cached(&[(0, &prompt)], &mut cache).unwrap();
        let logits = logits.to_vec2::<f32>().unwrap().remove(0);
        for case in expected["cases"].as_array().unwrap() {
            let mut options = SamplingOptions { temperature: 1.0, ..SamplingOptions::default() };
            for step in case["pipeline"].as_array().unwrap() {
                let value = step[1].as_f64().unwrap();
                match step[0].as_str().unwrap() {
                    "repetition_penalty" => options.repetition_penalty = value,
                    "temperature" => options.temperature = value,
                    "top_k" => options.top_k = Some(value as usize),
                    "top_p" => options.top_p = Some(value),
                    "min_p" => options.min_p = Some(value),
                    other => panic!("{other}"),
                }
            }
            let found = options.distribution(&logits, &prompt).probabilities;
            let kept = found.iter().filter(|p| **p > 0.0).count();
            assert_eq!(
                kept as u64,
                case["n_kept"].as_u64().unwrap(),
                "{name} {}",
                case["pipeline"]
            );
            for (id, wanted) in ids(&case["top_ids"]).into_iter().zip(numbers(&case["top_probs"])) {
                let difference = (found[id as usize] - wanted).abs();
                assert!(difference < 1e-5, "{name} token {id}: off by {difference}");
            }
        }
    }
}

#[test]
fn a_batch_answers_as_each_prompt_alone() {
    let model = load("qwen3");
    let prompts: Vec<Vec<u32>> =
        (0..5).map(|n| (1..=3 + 4 * (n * 2 % 5)).map(|i| i * 31 % 2000).collect()).collect();
    let answer = |batch_size| {
        let options =
            GenerateOptions { max_new_tokens: 12, batch_size, ..GenerateOptions::default() };
        let mut scope = EvalScope::open(&model, &Ledger::new());
        scope.generate(&prompts, &options, &mut |_, _| None).unwrap()
    };
    let alone = answer(1);
    assert!(alone.iter().zip(&prompts).all(|(answer, prompt)| answer.prompt_ids == *prompt));
    // Log-probabilities included, to the bit.
    assert_eq!(alone, answer(5));
    assert_eq!(alone, answer(2));
}

#[test]
fn sampled_answers_go_by_their_seed() {
    let model = load("smol-llama");
    let answer = |seed| {
        let sampling = SamplingOptions { temperature: 1.0, seed, ..SamplingOptions::default() };
        let options =
            GenerateOptions { max_new_tokens: 20, sampling, ..GenerateOptions::default() };
        let mut scope = EvalScope::open(&model, &Ledger::new());
        scope.generate(&[vec![5, 6], vec![5, 6]], &options, &mut |_, _| None).unwrap()
    };
    let first = answer(1);
    assert_eq!(first, answer(1));
    assert_ne!(first[0].new_ids, first[1].new_ids);
    assert_ne!(first[0].new_ids, answer(2)[0].new_ids);
}

/// What greedy decoding says by itself, and what it may not say any more.
#[test]
fn penalties_and_bans_reach_the_answer() {
    let model = load("smol-llama");
    let answer = |stop_ids: &[u32], sampling: SamplingOptions| {
        let options = GenerateOptions {
            max_new_tokens: 40,
            stop_ids: stop_ids.to_vec(),
            sampling,
            ..GenerateOptions::default()
        };
        let mut scope = EvalScope::open(&model, &Ledger::new());
        scope.generate(&[vec![5, 6]], &options, &mut |_, _| None).unwrap().remove(0)
    };
    let plain = answer(&[], SamplingOptions::default());
    let repeats = |ids: &[u32]| {
        let mut pairs: Vec<&[u32]> = ids.windows(2).collect();
        pairs.sort_unstable();
        pairs.windows(2).any(|two| two[0] == two[1])
    };
    assert!(repeats(&plain.new_ids), "{:?}", plain.new_ids);
    let no_repeat = SamplingOptions { no_repeat_ngram_size: 2, ..SamplingOptions::default() };
    assert!(!repeats(&answer(&[], no_repeat).new_ids));

    let frequency = SamplingOptions { frequency_penalty: 1e4, ..SamplingOptions::default() };
    let mut once = answer(&[], frequency).new_ids;
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), 40);

    let first = plain.new_ids[0];
    let biased =
        SamplingOptions { logit_bias: [(first, -1e4)].into(), ..SamplingOptions::default() };
    assert!(!answer(&[], biased).new_ids.contains(&first));

    let stopped = answer(&[first], SamplingOptions::default());
    assert_eq!((stopped.new_ids.len(), stopped.ended), (1, Ended::StopToken));
    let patient = SamplingOptions { min_new_tokens: 9, ..SamplingOptions::default() };
    let patient = answer(&[first], patient).new_ids;
    assert!(patient.len() > 9 && !patient[..9].contains(&first));
}

#[test]
fn a_watcher_ends_an_answer() {
    let model = load("smol-llama");
    let options = GenerateOptions { max_new_tokens: 20, ..GenerateOptions::default() };
    let mut scope = EvalScope::open(&model, &Ledger::new());
    let mut watcher = |_: usize, ids: &[u32]| (ids.len() == 4).then_some(Ended::StopString);
    let answer = scope.generate(&[vec![5, 6]], &options, &mut watcher).unwrap().remove(0);
    assert_eq!((answer.new_ids.len(), answer.ended), (4, Ended::StopString));
    let none = GenerateOptions { max_new_tokens: 0, ..GenerateOptions::default() };
    let answer = scope.generate(&[vec![5, 6]], &none, &mut |_, _| None).unwrap().remove(0);
    assert!(answer.new_ids.is_empty());
}

#[test]
fn eval_loss_is_that_of_the_golden_run() {
    for name in MODELS {
        let train = golden(name, "train.json");
        let model = load(name);
        let rows = ids(&train["eval_rows"]).into_iter().map(|row| {
            let row = &train["tokenized"][row as usize];
            let input_ids = ids(&row["input_ids"]);
            let labels =
                row["labels"].as_array().unwrap().iter().map(|l| l.as_i64().unwrap()).collect();
            Row { seq_lengths: vec![input_ids.len() as u32], input_ids, labels, examples: 1 }
        });
        let mut scope = EvalScope::open(&model, &Ledger::new());
        let report = scope.score(rows.map(Ok::<_, EvalError>)).unwrap().unwrap();
        let expected = train["eval_loss_before"].as_f64().unwrap();
        assert!((report.loss / expected - 1.0).abs() < 2e-6, "{name}: {} {expected}", report.loss);
        assert!((report.perplexity.ln() - report.loss).abs() < 1e-12);
        assert!((0.0..=1.0).contains(&report.token_accuracy));
    }
}

#[test]
fn a_loss_is_stopped_between_its_rows_and_takes_no_more_of_them() {
    let model = load("qwen3");
    let row = Row {
        input_ids: vec![3, 1, 4, 1],
        labels: vec![3, 1, 4, 1],
        seq_lengths: vec![4],
        examples: 1,
    };
    let taken = Cell::new(0);
    let stop = || taken.get() == 2;
    let mut scope = EvalScope::open(&model, &Ledger::new()).stopped_by(&stop);
    let rows = (0..5).map(|_| {
        taken.set(taken.get() + 1);
        Ok::<_, EvalError>(row.clone())
    });
    assert!(matches!(scope.score(rows), Err(EvalError::Stopped)));
    assert_eq!(taken.get(), 2, "it was asked before the second was scored");
    let unreadable = [Ok(row.clone()), Err(EvalError::EmptyPrompt { index: 7 })];
    let mut scope = EvalScope::open(&model, &Ledger::new());
    assert!(matches!(scope.score(unreadable), Err(EvalError::EmptyPrompt { index: 7 })));
}
