//! What memory can be traded for: each setting against the run without it.

use candle_core::DType;
use chandler_trainer::{MomentsDtype, StepMetrics, TrainError, TrainSettings, Trainer};
use chandler_vram::{Category, Ledger};

use crate::support::{golden, load, rows, settings};

const STEPS: u64 = 12;

/// What a run measured, the bytes that it holds between steps, and the most that a category held.
struct Run {
    metrics: Vec<StepMetrics>,
    resident: u64,
    ledger: Ledger,
}

impl Run {
    fn peak(&self, category: Category) -> u64 {
        let all = self.ledger.snapshot().categories.into_iter();
        all.filter(|c| c.category == category).map(|c| c.peak).sum()
    }

    fn losses(&self) -> Vec<u64> {
        self.metrics.iter().map(|m| m.loss.to_bits()).collect()
    }

    /// The largest relative distance between the losses of two runs.
    fn distance(&self, other: &Run) -> f64 {
        let pairs = self.metrics.iter().zip(&other.metrics);
        pairs.map(|(a, b)| (a.loss / b.loss - 1.0).abs()).fold(0.0, f64::max)
    }
}

/// The golden run of qwen3 with one micro-batch a step.
fn base() -> TrainSettings {
    let train = golden("qwen3", "train.json");
    TrainSettings {
        max_steps: Some(STEPS),
        gradient_accumulation_steps: 1,
        max_grad_norm: 0.0,
        ..settings(&train["hp"])
    }
}

fn run(dtype: DType, settings: TrainSettings) -> Run {
    let rows = rows(&golden("qwen3", "train.json")["tokenized"]);
    let ledger = Ledger::new();
    let mut trainer = Trainer::new(load("qwen3", dtype), &rows, settings, &ledger).unwrap();
    let metrics = (0..STEPS).map(|_| trainer.step().unwrap()).collect();
    Run { metrics, resident: trainer.resident_bytes(), ledger }
}

#[test]
fn the_optimizer_in_the_backward_pass_moves_the_same_and_holds_fewer_gradients() {
    let usual = run(DType::F32, base());
    let early = run(DType::F32, TrainSettings { optimizer_in_backward: true, ..base() });
    // Without clipping, every parameter moves by the same bits.
    assert_eq!(usual.losses(), early.losses());
    for (a, b) in usual.metrics.iter().zip(&early.metrics) {
        assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-12);
    }
    assert!(early.peak(Category::Gradients) < usual.peak(Category::Gradients));
    let accumulates =
        TrainSettings { optimizer_in_backward: true, gradient_accumulation_steps: 2, ..base() };
    let rows = rows(&golden("qwen3", "train.json")["tokenized"]);
    let refused = Trainer::new(load("qwen3", DType::F32), &rows, accumulates, &Ledger::new());
    assert!(matches!(refused.err(), Some(TrainError::BadSetting { .. })));
}

#[test]
fn a_budget_for_activations_is_kept_and_changes_no_bit() {
    let all = run(DType::F32, base());
    let most = all.peak(Category::Activations);
    let budget = most * 3 / 5;
    let lean = run(DType::F32, TrainSettings { activation_budget: Some(budget), ..base() });
    assert_eq!(all.losses(), lean.losses());
    let held = lean.peak(Category::Activations);
    assert!(held <= budget && held > 0, "{held} of {budget}, {most} without");
    let roomy = run(DType::F32, TrainSettings { activation_budget: Some(most), ..base() });
    assert_eq!(roomy.peak(Category::Activations), most);
}

#[test]
fn moments_of_8_bits_follow_those_of_32() {
    let wide = run(DType::F32, base());
    let narrow = run(DType::F32, TrainSettings { moments: MomentsDtype::Blockwise8, ..base() });
    assert!(narrow.distance(&wide) < 0.02, "{}", narrow.distance(&wide));
    assert!(narrow.resident < wide.resident * 6 / 10, "{} {}", narrow.resident, wide.resident);
}

#[test]
fn bf16_without_masters_follows_the_run_with_them_in_a_third_of_the_state() {
    let masters = run(DType::BF16, base());
    let alone = run(DType::BF16, TrainSettings { master_weights: false, ..base() });
    assert!(alone.distance(&masters) < 0.02, "{}", alone.distance(&masters));
    assert!(alone.resident < masters.resident * 8 / 10);
    assert!(alone.peak(Category::Gradients) < masters.peak(Category::Gradients) * 6 / 10);
    let rows = rows(&golden("qwen3", "train.json")["tokenized"]);
    let f32 = TrainSettings { master_weights: false, ..base() };
    let refused = Trainer::new(load("qwen3", DType::F32), &rows, f32, &Ledger::new());
    assert!(matches!(refused.err(), Some(TrainError::BadSetting { .. })));
}
