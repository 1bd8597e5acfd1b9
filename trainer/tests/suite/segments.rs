//! What must not change the numbers: recomputing blocks, threads, and who watches.

use candle_core::DType;
use chandler_trainer::{BoxError, Control, Observer, StepMetrics, TrainSettings, Trainer};
use chandler_vram::{Category, Ledger};

use crate::support::{golden, load, rows, run, settings};

fn short(name: &str) -> (Vec<chandler_data::Row>, TrainSettings) {
    let train = golden(name, "train.json");
    let settings = TrainSettings { max_steps: Some(4), ..settings(&train["hp"]) };
    (rows(&train["tokenized"]), settings)
}

fn bits(metrics: &[StepMetrics]) -> Vec<(u64, u64)> {
    metrics.iter().map(|m| (m.loss.to_bits(), m.grad_norm.to_bits())).collect()
}

#[test]
fn recomputed_blocks_give_the_same_bits_and_hold_less() {
    for name in ["smol-llama", "gemma3"] {
        let (rows, settings) = short(name);
        let peaks: Vec<(Vec<(u64, u64)>, u64)> = [None, Some(1), Some(0)]
            .into_iter()
            .map(|kept_blocks| {
                let ledger = Ledger::new();
                let settings = TrainSettings { kept_blocks, ..settings.clone() };
                let model = load(name, DType::F32);
                let mut trainer = Trainer::new(model, &rows, settings, &ledger).unwrap();
                let metrics: Vec<_> = (0..4).map(|_| trainer.step().unwrap()).collect();
                assert_eq!(ledger.bytes(Category::Activations), 0);
                assert_eq!(ledger.bytes(Category::Gradients), 0);
                assert_eq!(ledger.total(), trainer.resident_bytes());
                let peak = ledger.snapshot().categories.into_iter();
                let peak = peak.filter(|c| c.category == Category::Activations).map(|c| c.peak);
                (bits(&metrics), peak.sum())
            })
            .collect();
        assert_eq!(peaks[0].0, peaks[1].0, "{name}");
        assert_eq!(peaks[0].0, peaks[2].0, "{name}");
        assert!(peaks[0].1 > peaks[1].1 && peaks[1].1 > 2 * peaks[2].1, "{name}: {peaks:?}");
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (rows, settings) = short("qwen3");
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&run(load("qwen3", DType::F32), &rows, settings.clone())))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn every_trainable_parameter_moves() {
    for name in crate::support::MODELS {
        let (rows, settings) = short(name);
        let before = load(name, DType::F32);
        let settings = TrainSettings { weight_decay: 0.0, ..settings };
        let mut trainer =
            Trainer::new(load(name, DType::F32), &rows, settings, &Ledger::new()).unwrap();
        for _ in 0..3 {
            trainer.step().unwrap();
        }
        for ((_, before), (_, after)) in before.params().iter().zip(trainer.model().params().iter())
        {
            let moved = (&before.value - &after.value).unwrap().abs().unwrap();
            let moved = moved.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(moved > 0.0, "{name}: {} stayed", before.name);
        }
    }
}

/// Stops after a number of steps, and reads the whole model at every boundary.
struct Nosy {
    stop_after: u64,
    losses: Vec<u64>,
}

impl Observer for Nosy {
    fn at_boundary(
        &mut self,
        step: u64,
        model: &chandler_model::CausalLm,
    ) -> Result<Control, BoxError> {
        let layout = chandler_model::SequenceLayout::new([3]);
        let input = model.input(&[1, 2, 3], layout)?;
        model.logits(&model.forward(&input)?)?;
        Ok(if step == self.stop_after { Control::Stop } else { Control::Continue })
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        self.losses.push(metrics.loss.to_bits());
        Ok(())
    }

    fn checkpoint_path(&mut self, _step: u64) -> Result<Option<std::path::PathBuf>, BoxError> {
        Ok(None)
    }

    fn checkpoint_written(&mut self, _: u64, _: &std::path::Path) -> Result<(), BoxError> {
        Ok(())
    }
}

#[test]
fn looking_at_the_model_every_step_changes_nothing() {
    let (rows, settings) = short("llama-gqa");
    let alone = run(load("llama-gqa", DType::F32), &rows, settings.clone());
    let model = load("llama-gqa", DType::F32);
    let mut trainer = Trainer::new(model, &rows, settings, &Ledger::new()).unwrap();
    let mut nosy = Nosy { stop_after: 3, losses: vec![] };
    assert_eq!(trainer.train(&mut nosy).unwrap(), chandler_trainer::Outcome::Stopped);
    let expected: Vec<u64> = alone[..3].iter().map(|m| m.loss.to_bits()).collect();
    assert_eq!(nosy.losses, expected);
}
