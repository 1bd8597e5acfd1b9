//! Every way out of an evaluation frees the cache.

use std::sync::atomic::{AtomicBool, Ordering};

use chandler_evaluator::{EvalError, EvalScope, GenerateOptions};
use chandler_vram::{Category, HostMeter, Ledger};

use crate::support::load;

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

#[test]
fn two_hundred_evaluations_leave_nothing() {
    let model = load("qwen3");
    let ledger = Ledger::new();
    let meter = HostMeter::new();
    let mut rss_after_warm_up = None;
    for round in 0..200 {
        let mut scope = EvalScope::open(&model, &ledger);
        let prompts = [vec![1, 2, 3], vec![4, 5, 6, 7]];
        let answers = scope.generate(&prompts, &options(24), &mut |_, _| None).unwrap();
        assert_eq!(answers.len(), 2);
        assert!(scope.peak_cache_bytes() > 0);
        scope.close().unwrap();
        assert_eq!(ledger.bytes(Category::KvCache), 0, "round {round}");
        if round == 20 {
            rss_after_warm_up = meter.read_host().rss;
        }
    }
    if let (Some(before), Some(after)) = (rss_after_warm_up, meter.read_host().rss) {
        // Other tests run beside this one; a leaked cache would be 180 times 110 KiB and more.
        assert!(after < before + (64 << 20), "RSS grew from {before} to {after}");
    }
}

#[test]
fn a_stop_an_error_and_a_panic_free_it() {
    let model = load("qwen3");
    let ledger = Ledger::new();
    let stop = AtomicBool::new(false);
    let is_stopped = || stop.load(Ordering::Relaxed);
    let mut scope = EvalScope::open(&model, &ledger).stopped_by(&is_stopped);
    let mut watcher = |_: usize, ids: &[u32]| {
        assert!(ledger.bytes(Category::KvCache) > 0);
        stop.store(ids.len() == 3, Ordering::Relaxed);
        None
    };
    let error = scope.generate(&[vec![1]], &options(50), &mut watcher).unwrap_err();
    assert!(matches!(error, EvalError::Stopped));
    assert_eq!(ledger.bytes(Category::KvCache), 0);
    scope.close().unwrap();

    let mut scope = EvalScope::open(&model, &ledger);
    let error = scope.generate(&[vec![99_999]], &options(5), &mut |_, _| None).unwrap_err();
    assert!(error.to_string().contains("99999"), "{error}");
    let error = scope.generate(&[vec![1], vec![]], &options(5), &mut |_, _| None).unwrap_err();
    assert!(matches!(error, EvalError::EmptyPrompt { index: 1 }) && error.hint().is_some());
    assert_eq!(ledger.bytes(Category::KvCache), 0);

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut scope = EvalScope::open(&model, &ledger);
        scope.generate(&[vec![1]], &options(5), &mut |_, _| panic!("in the watcher"))
    }));
    assert!(panicked.is_err());
    assert_eq!(ledger.bytes(Category::KvCache), 0);
}

#[test]
fn a_long_prompt_is_stopped_before_its_first_token() {
    let model = load("qwen3");
    let ledger = Ledger::new();
    let mut scope = EvalScope::open(&model, &ledger).stopped_by(&|| true);
    let prompt: Vec<u32> = (0..1500).map(|i| i % 2000).collect();
    let mut heard = 0;
    let mut watcher = |_: usize, _: &[u32]| {
        heard += 1;
        None
    };
    let error = scope.generate(&[prompt], &options(5), &mut watcher).unwrap_err();
    assert!(matches!(error, EvalError::Stopped), "{error}");
    assert_eq!((heard, ledger.bytes(Category::KvCache)), (0, 0));
}

#[test]
fn what_stays_is_named() {
    let model = load("qwen3");
    let ledger = Ledger::new();
    let scope = EvalScope::open(&model, &ledger);
    let forgotten = ledger.enter(Category::KvCache, 742 << 20);
    let error = scope.close().unwrap_err();
    assert_eq!(error.to_string(), "the evaluation left 742.00 MiB of kv_cache behind");
    drop(forgotten);
}
