//! An evaluation in which memory runs out is cut down, and leaves nothing behind.
//!
//! The gate is the process's own, so this is a test binary of its own with one test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use chandler_evaluator::{EvalScope, GenerateOptions, Shrunk};
use chandler_kernels::memory::{Faults, Gate, set_gate};
use chandler_model::{CausalLm, ModelConfig};
use chandler_vram::{Category, Ledger};

fn refuse(nth: usize, above_bytes: usize) -> Arc<Faults> {
    let gate = Arc::new(Faults::new(nth, above_bytes));
    set_gate(Some(gate.clone()));
    gate
}

/// Refuses this request and the one after it.
struct Twice(AtomicUsize, usize);

impl Gate for Twice {
    fn admits(&self, _bytes: usize) -> bool {
        let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        number != self.1 && number != self.1 + 1
    }
}

fn model() -> CausalLm {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 1500, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    let config = ModelConfig::from_json(config, "config.json".as_ref()).expect("a config");
    CausalLm::fresh(config, 7, DType::F32, &Device::Cpu).expect("a model")
}

#[test]
fn what_is_refused_is_cut_and_no_cache_stays() {
    let (model, ledger) = (model(), Ledger::new());
    let prompts: Vec<Vec<u32>> = (1..6).map(|n| (0..n * 9).collect()).collect();
    let answers = |max_new_tokens: usize| {
        let options =
            GenerateOptions { max_new_tokens, batch_size: 4, ..GenerateOptions::default() };
        let mut scope = EvalScope::open(&model, &ledger);
        let answers = scope.generate(&prompts, &options, &mut |_, _| None);
        let shrunk = scope.shrunk();
        // The shortage is told as it was, with the cache that was being filled.
        let told = scope.shortage().map(|shortage| shortage.own.total);
        assert_eq!(told.is_some(), shrunk.is_some());
        assert!(told.is_none_or(|bytes| bytes > 0));
        scope.close().unwrap();
        assert_eq!(ledger.bytes(Category::KvCache), 0);
        answers.map(|answers| {
            (answers.into_iter().map(|answer| answer.new_ids).collect::<Vec<_>>(), shrunk)
        })
    };
    let gate = refuse(0, usize::MAX);
    let (expected, shrunk) = answers(40).unwrap();
    assert_eq!(shrunk, None);
    let requests = gate.asked();
    assert!(requests > 100, "{requests} requests");
    // What is refused once may be had once the idle buffers are gone: nothing is cut.
    for nth in (1..=requests).step_by(7) {
        refuse(nth, usize::MAX);
        assert_eq!(answers(40).unwrap(), (expected.clone(), None), "request {nth}");
    }
    // Whichever request is refused again, the answers say the same.
    for nth in 1..=requests {
        set_gate(Some(Arc::new(Twice(AtomicUsize::new(0), nth))));
        let (found, shrunk) = answers(40).unwrap();
        let shrunk = shrunk.unwrap_or_else(|| panic!("request {nth} was not missed"));
        // Where there was one prompt left, its answer is shorter.
        let one = shrunk.batch_size == 1;
        assert!(shrunk.max_new_tokens == if one { 20 } else { 40 }, "request {nth}: {shrunk:?}");
        for (found, expected) in found.iter().zip(&expected) {
            let whole = expected.len() == found.len();
            assert!(expected.starts_with(found) && (one || whole), "request {nth}");
        }
    }
    // With ever less memory answers become shorter, and then there are none.
    refuse(0, usize::MAX);
    let (expected, _) = answers(250).unwrap();
    let mut seen: Vec<Option<Shrunk>> = vec![];
    for kib in (4..320).step_by(4).rev() {
        refuse(0, kib << 10);
        match answers(250) {
            Ok((found, shrunk)) => {
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(expected.starts_with(found) && found.len() >= 16, "{kib} KiB");
                }
                seen.push(shrunk);
            }
            Err(error) => {
                assert!(error.is_out_of_memory() && error.hint().is_some(), "{error}");
                assert!(
                    error.to_string().contains("could not be had: this process holds"),
                    "{error}"
                );
                assert_eq!(seen.last().copied().flatten().map(|s| s.batch_size), Some(1));
                break;
            }
        }
    }
    set_gate(None);
    assert!(seen.first() == Some(&None) && seen.len() > 5, "{seen:?}");
    let shortest = seen.iter().flatten().map(|shrunk| shrunk.max_new_tokens).min();
    assert!(shortest.is_some_and(|tokens| tokens < 100), "{shortest:?}");
}
