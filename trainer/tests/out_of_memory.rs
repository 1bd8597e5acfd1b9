//! A step in which memory runs out is done again in smaller pieces, and adds up to the same.
//!
//! The gate is the process's own, so this is a test binary of its own, and its tests take turns.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device};
use chandler_data::Row;
use chandler_kernels::memory::{Faults, set_gate};
use chandler_model::{CausalLm, ModelConfig};
use chandler_trainer::{
    BoxError, Control, Fit, Observer, StepMetrics, TrainError, TrainSettings, Trainer,
};
use chandler_vram::{Ledger, Shortage};

const STEPS: u64 = 2;

/// One test at a time; the gate is gone when this is dropped.
struct Turn(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Turn {
    fn take() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        Self(TURN.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn refuse(_: &Turn, nth: usize, above_bytes: usize) -> Arc<Faults> {
    let gate = Arc::new(Faults::new(nth, above_bytes));
    set_gate(Some(gate.clone()));
    gate
}

impl Drop for Turn {
    fn drop(&mut self) {
        set_gate(None);
    }
}

fn model() -> CausalLm {
    let config = serde_json::json!({
        "model_type": "qwen3", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "tie_word_embeddings": true,
    });
    let config = ModelConfig::from_json(config, "config.json".as_ref()).expect("a config");
    CausalLm::fresh(config, 7, DType::F32, &Device::Cpu).expect("a model")
}

/// Seven rows of `shortest` tokens and more.
fn rows(shortest: u32) -> Vec<Row> {
    let row = |number: u32| {
        let input_ids: Vec<u32> =
            (0..shortest + 5 * number).map(|i| (i * 7 + number) % 300).collect();
        let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
        Row { seq_lengths: vec![input_ids.len() as u32], input_ids, labels, examples: 1 }
    };
    (0..7).map(row).collect()
}

fn settings() -> TrainSettings {
    TrainSettings {
        learning_rate: 1e-3,
        max_steps: Some(STEPS),
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 2,
        ..TrainSettings::default()
    }
}

const SHORT: u32 = 20;
/// So long that a micro-batch of one is larger than any weight.
const LONG: u32 = 250;

/// Losses of a run, and how its steps were cut in the end.
fn run(settings: TrainSettings, shortest: u32) -> Result<(Vec<f64>, Fit), TrainError> {
    #[derive(Default)]
    struct Losses(Vec<f64>, Fit);

    impl Observer for Losses {
        fn at_boundary(&mut self, _: u64, _: &CausalLm) -> Result<Control, BoxError> {
            Ok(Control::Continue)
        }

        fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
            self.0.push(metrics.loss);
            Ok(())
        }

        fn tightened(&mut self, _: u64, fit: Fit, why: &Shortage) -> Result<(), BoxError> {
            assert!(why.wanted.is_some() && why.own.total > 0, "{why}");
            assert_ne!(fit, self.1, "told without a change");
            self.1 = fit;
            Ok(())
        }

        fn checkpoint_path(&mut self, _: u64) -> Result<Option<std::path::PathBuf>, BoxError> {
            Ok(None)
        }

        fn checkpoint_written(&mut self, _: u64, _: &std::path::Path) -> Result<(), BoxError> {
            Ok(())
        }
    }

    let (rows, ledger) = (rows(shortest), Ledger::new());
    let mut trainer = Trainer::new(model(), &rows, settings, &ledger)?;
    let resident = ledger.total();
    let mut losses = Losses::default();
    let outcome = trainer.train(&mut losses);
    assert_eq!(ledger.total(), resident, "what a step enters leaves with it");
    outcome.map(|_| (losses.0, losses.1))
}

fn same(losses: &[f64], expected: &[f64]) -> bool {
    let near = |(a, b): (&f64, &f64)| (a / b - 1.0).abs() <= 1e-6;
    losses.len() == expected.len() && losses.iter().zip(expected).all(near)
}

#[test]
fn whichever_request_is_refused_the_losses_are_the_same() {
    let turn = Turn::take();
    let gate = refuse(&turn, 0, usize::MAX);
    let (expected, fit) = run(settings(), SHORT).unwrap();
    let requests = gate.asked();
    assert!(fit == Fit::default() && requests > 100, "{requests} requests");
    let mut cut = 0;
    for nth in 1..=requests {
        refuse(&turn, nth, usize::MAX);
        match run(settings(), SHORT) {
            Ok((losses, fit)) => {
                assert!(same(&losses, &expected), "request {nth}: {losses:?} not {expected:?}");
                cut += usize::from(fit.rows == Some(2));
            }
            // Before the first step there is nothing to cut.
            Err(error) => assert!(error.to_string().contains("could not be had"), "{nth}: {error}"),
        }
    }
    assert!(cut * 10 > requests * 8, "{cut} of {requests} runs were cut");
}

#[test]
fn a_run_fits_in_the_end_or_says_what_it_lacks() {
    let turn = Turn::take();
    refuse(&turn, 0, usize::MAX);
    let (expected, _) = run(settings(), LONG).unwrap();
    let mut fits = vec![];
    for kib in (16..1600).step_by(48) {
        refuse(&turn, 0, kib << 10);
        match run(settings(), LONG) {
            Ok((losses, fit)) => {
                assert!(same(&losses, &expected), "{kib} KiB: {losses:?} not {expected:?}");
                fits.push(fit);
            }
            Err(error) => {
                assert!(fits.is_empty(), "{kib} KiB do not suffice, and fewer did: {error}");
                assert!(error.to_string().contains("could not be had"), "{error}");
                assert!(error.hint().is_some());
            }
        }
    }
    assert!(fits.len() > 3 && fits[0].rows == Some(1), "{fits:?}");
    assert_eq!(fits.last(), Some(&Fit::default()));
}

#[test]
fn weights_that_have_moved_are_not_moved_again() {
    let turn = Turn::take();
    let early = || TrainSettings {
        optimizer_in_backward: true,
        gradient_accumulation_steps: 1,
        ..settings()
    };
    let gate = refuse(&turn, 0, usize::MAX);
    let (expected, _) = run(early(), SHORT).unwrap();
    let (mut whole, mut broken) = (0, 0);
    for nth in 1..=gate.asked() {
        refuse(&turn, nth, usize::MAX);
        match run(early(), SHORT) {
            Ok((losses, fit)) => {
                assert!(fit.rows.is_none(), "a batch that is cut would move them twice");
                assert_eq!(losses, expected, "request {nth}");
                whole += 1;
            }
            Err(TrainError::OutOfMemory { moved, .. }) => broken += usize::from(moved),
            Err(error) => assert!(error.to_string().contains("could not be had"), "{nth}: {error}"),
        }
    }
    assert!(whole > 10 && broken > 10, "{whole} {broken}");
}
