//! A thousand times training and evaluation in turn, with evaluations that are stopped, fail and
//! panic: not a byte stays.
//!
//! The allocator, its settings and the gate are the process's own, so this is a program of its own,
//! which like chandler tells the heap to keep pages before there is a second thread.

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device};
use chandler_cli::heap;
use chandler_data::Row;
use chandler_evaluator::{EvalScope, GenerateOptions};
use chandler_kernels::memory::{Faults, set_gate};
use chandler_model::{CausalLm, ModelConfig};
use chandler_trainer::{TrainSettings, Trainer};
use chandler_vram::{Category, CountingAllocator, HostMeter, Ledger, counting};
use libtest_mimic::{Arguments, Trial};

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

const CYCLES: usize = 1000;
/// After these everything that is kept for later is there.
const WARM_UP: usize = 200;

fn model() -> CausalLm {
    let config = serde_json::json!({
        "model_type": "qwen3", "vocab_size": 8000, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_json(config, "config.json".as_ref()).expect("a config");
    CausalLm::fresh(config, 7, DType::F32, &Device::Cpu).expect("a model")
}

fn rows() -> Vec<Row> {
    let row = |number: u32| {
        let input_ids: Vec<u32> = (0..24).map(|i| (i * 7 + number) % 300).collect();
        let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
        Row { seq_lengths: vec![24], input_ids, labels, examples: 1 }
    };
    (0..8).map(row).collect()
}

/// One evaluation that ends in the way that `turn` says; whether it had answers.
fn evaluate(model: &CausalLm, ledger: &Ledger, turn: usize) -> bool {
    let options =
        GenerateOptions { max_new_tokens: 32, batch_size: 2, ..GenerateOptions::default() };
    let mut prompts = vec![vec![3, 1, 4], vec![1, 5, 9, 2, 6], vec![5, 3]];
    let calls = AtomicUsize::new(0);
    let last = 1 + turn * 13 % 40;
    let stop = || turn % 5 == 1 && calls.load(Ordering::Relaxed) >= last;
    match turn % 5 {
        2 => prompts[1] = vec![7, 999_999],
        4 => set_gate(Some(Arc::new(Faults::new(last, usize::MAX)))),
        _ => {}
    }
    let answered = catch_unwind(AssertUnwindSafe(|| {
        let mut scope = EvalScope::open(model, ledger).stopped_by(&stop);
        let mut watcher = |_: usize, _: &[u32]| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            assert!(turn % 5 != 3 || call < last, "a panic in the middle");
            None
        };
        let answers = scope.generate(&prompts, &options, &mut watcher);
        scope.close().expect("nothing is left");
        answers.is_ok()
    }));
    set_gate(None);
    answered.unwrap_or(false)
}

fn main() {
    heap::keep_pages();
    let trial = Trial::test("a_thousand_cycles_leave_nothing", || {
        a_thousand_cycles_leave_nothing();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn a_thousand_cycles_leave_nothing() {
    std::panic::set_hook(Box::new(|_| {}));
    let (rows, ledger) = (rows(), Ledger::new());
    let settings = TrainSettings {
        max_steps: Some(CYCLES as u64),
        per_device_train_batch_size: 2,
        ..TrainSettings::default()
    };
    let mut trainer = Trainer::new(model(), &rows, settings, &ledger).expect("a run");
    let resident = ledger.total();
    // What is free goes back first, as after every evaluation of a run.
    let rss = || {
        heap::give_back();
        HostMeter::new().read_host().rss
    };
    let live = || {
        heap::give_back();
        counting::live_bytes()
    };
    let (mut heap_before, mut resident_set) = (None, vec![]);
    let mut answered = [0; 5];
    for cycle in 0..CYCLES {
        trainer.step().expect("a step");
        answered[cycle % 5] += usize::from(evaluate(trainer.model(), &ledger, cycle));
        assert_eq!(ledger.bytes(Category::KvCache), 0, "cycle {cycle}");
        assert_eq!(ledger.total(), resident, "cycle {cycle}");
        if cycle == WARM_UP {
            heap_before = live();
        }
        if cycle >= WARM_UP && cycle % 40 == 0 {
            resident_set.extend(rss());
        }
    }
    drop(std::panic::take_hook());
    // Plain ones and those with one refusal have answers, broken ones none, stopped ones sometimes.
    let each = CYCLES / 5;
    let [plain, _, broken, _, refused] = answered;
    assert_eq!((plain, broken, refused), (each, 0, each), "{answered:?}");
    assert!(answered[1] < each && answered[3] < each, "{answered:?}");
    assert_eq!(live(), heap_before, "the heap");
    let (early, late) = resident_set.split_at(resident_set.len() / 2);
    match (early.iter().max(), late.iter().min()) {
        // A resident set goes up and down by some pages of the C library; a leak only goes up.
        (Some(most), Some(least)) => {
            assert!(*least as f64 <= *most as f64 * 1.02, "{resident_set:?}");
        }
        _ => eprintln!("no reading of the resident set here: not compared"),
    }
}
