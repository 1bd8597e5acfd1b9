//! On a GPU the host hears of a step when the next one has been handed over; on the CPU at once.

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use chandler_data::Row;
use chandler_model::CausalLm;
use chandler_trainer::{
    BoxError, Control, Observer, Outcome, StepMetrics, TrainError, TrainSettings, Trainer,
};
use chandler_vram::Ledger;

use crate::support::{device, golden, load, rows, run, settings};

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Event {
    Boundary(u64),
    Done(u64),
}
use Event::{Boundary, Done};

/// Wants the metrics of step 3 before its boundary.
#[derive(Default)]
struct Patient {
    events: Vec<Event>,
    metrics: Vec<StepMetrics>,
    stop_after: Option<u64>,
}

impl Observer for Patient {
    fn at_boundary(&mut self, step: u64, _: &CausalLm) -> Result<Control, BoxError> {
        self.events.push(Boundary(step));
        let stops = self.stop_after == Some(step);
        Ok(if stops { Control::Stop } else { Control::Continue })
    }

    fn metrics_may_be_late(&self, step: u64) -> bool {
        step != 3
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        self.events.push(Done(metrics.step));
        self.metrics.push(metrics.clone());
        Ok(())
    }

    fn checkpoint_path(&mut self, _: u64) -> Result<Option<PathBuf>, BoxError> {
        Ok(None)
    }

    fn checkpoint_written(&mut self, _: u64, _: &Path) -> Result<(), BoxError> {
        Ok(())
    }
}

fn six_steps() -> (Vec<Row>, TrainSettings) {
    let train = golden("qwen3", "train.json");
    let settings = TrainSettings { max_steps: Some(6), ..settings(&train["hp"]) };
    (rows(&train["tokenized"]), settings)
}

#[test]
fn metrics_come_a_step_late_on_a_gpu_unless_they_are_wanted() {
    let (rows, base) = six_steps();
    for (optimizer_in_backward, stop_after) in
        [(false, None), (false, Some(5)), (true, None), (true, Some(5))]
    {
        let outcome = stop_after.map_or(Outcome::Finished, |_| Outcome::Stopped);
        let settings =
            TrainSettings { optimizer_in_backward, gradient_accumulation_steps: 1, ..base.clone() };
        let expected = run(load("qwen3", DType::BF16), &rows, settings.clone());
        let model = load("qwen3", DType::BF16);
        let mut trainer = Trainer::new(model, &rows, settings.clone(), &Ledger::new()).unwrap();
        let mut patient = Patient { stop_after, ..Patient::default() };
        assert_eq!(trainer.train(&mut patient).unwrap(), outcome);
        let steps = stop_after.unwrap_or(6);
        let at_once = (0..=steps).flat_map(|step| [Done(step), Boundary(step)]).skip(1);
        let late = [
            Boundary(0),
            Boundary(1),
            Done(1),
            Boundary(2),
            Done(2),
            Done(3),
            Boundary(3),
            Boundary(4),
            Done(4),
            Boundary(5),
            Done(5),
            Done(6),
            Boundary(6),
        ];
        let late = late.into_iter().take(11 + 2 * (steps as usize - 5));
        let events: Vec<Event> =
            if device().is_cuda() { late.collect() } else { at_once.collect() };
        assert_eq!(patient.events, events);
        let numbers = |metrics: &StepMetrics| {
            let numbers =
                [metrics.loss, metrics.grad_norm, metrics.lr, metrics.mean_token_accuracy];
            (metrics.step, metrics.num_tokens, numbers.map(f64::to_bits))
        };
        let found: Vec<_> = patient.metrics.iter().map(numbers).collect();
        let expected: Vec<_> = expected[..steps as usize].iter().map(numbers).collect();
        assert_eq!(found, expected);
        assert_eq!(trainer.last_metrics().map(|last| last.step), Some(steps));
    }
}

/// Every weight, to the bit.
fn weights(trainer: &Trainer) -> Vec<Vec<f32>> {
    let bits = |tensor: &Tensor| {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    trainer.best_values().into_iter().map(|(_, tensor)| bits(tensor)).collect()
}

#[test]
fn nothing_has_moved_since_a_loss_that_is_no_number() {
    let (rows, settings) = six_steps();
    let settings = TrainSettings { learning_rate: 1e30, warmup_steps: 0, ..settings };
    let new = || {
        Trainer::new(load("qwen3", DType::F32), &rows, settings.clone(), &Ledger::new()).unwrap()
    };
    let (mut waiting, mut late) = (new(), new());
    let first = (0..6).find_map(|_| waiting.step().err()).unwrap();
    let error = late.train(&mut Patient::default()).unwrap_err();
    assert_eq!(error.to_string(), first.to_string());
    assert!(matches!(error, TrainError::NotFinite { .. }));
    let (waiting, late) = (weights(&waiting), weights(&late));
    assert!(late.iter().flatten().all(|value| value.is_finite()));
    assert!(waiting == late);
}

/// A run whose second row has a token that is no number, and whose other rows are as good as any.
#[test]
fn a_good_step_after_a_bad_one_moves_nothing_either() {
    const BAD: u32 = 77;
    let row = |ids: [u32; 6]| Row {
        input_ids: ids.to_vec(),
        labels: ids.map(i64::from).to_vec(),
        seq_lengths: vec![6],
        examples: 1,
    };
    let rows = vec![row([1, 2, 3, 4, 5, 6]), row([1, BAD, 3, 4, 5, 6]), row([7, 8, 9, 1, 2, 3])];
    for (optimizer_in_backward, layer_norms_steps) in
        [(false, None), (false, Some(3)), (true, None), (true, Some(3))]
    {
        let settings = TrainSettings {
            optimizer_in_backward,
            max_steps: Some(3),
            learning_rate: 1e-3,
            warmup_steps: 0,
            per_device_train_batch_size: 1,
            gradient_accumulation_steps: 1,
            layer_norms_steps,
            ..six_steps().1
        };
        let new = || {
            let model = load("llama-gqa", DType::F32);
            let table = &model.params().get(model.embedding_param()).value;
            let nan = Tensor::full(f32::NAN, (1, table.dim(1).unwrap()), table.device()).unwrap();
            table.slice_set(&nan, 0, BAD as usize).unwrap();
            Trainer::new(model, &rows, settings.clone(), &Ledger::new()).unwrap()
        };
        let bits = |trainer: &Trainer| -> Vec<Vec<u32>> {
            let of = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
            weights(trainer).into_iter().map(of).collect()
        };
        let (mut waiting, mut late) = (new(), new());
        waiting.step().unwrap();
        let first = waiting.step().unwrap_err();
        assert!(matches!(first, TrainError::NotFinite { step: 2, .. }), "{first}");
        let error = late.train(&mut Patient::default()).unwrap_err();
        assert_eq!(error.to_string(), first.to_string());
        assert!(bits(&waiting) == bits(&late), "{optimizer_in_backward} {layer_norms_steps:?}");
    }
}

/// How often somebody has waited for all that a GPU was given, which only the stand-in for one counts.
fn waits() -> Option<usize> {
    let this = libloading::os::unix::Library::this();
    // SAFETY: where there is such a function, it takes nothing and returns a number.
    #[expect(unsafe_code, reason = "asks the stand-in for a driver")]
    unsafe {
        this.get::<extern "C" fn() -> usize>(b"stand_in_waits").ok().map(|count| count())
    }
}

#[test]
fn a_run_waits_for_no_step_of_a_gpu() {
    let Some(before) = waits() else {
        let words = "SKIPPED: only the stand-in for a GPU counts who waits\n";
        std::io::stderr().write_all(words.as_bytes()).unwrap();
        return;
    };
    let (rows, settings) = six_steps();
    for dtype in [DType::F32, DType::BF16] {
        for (settings, waits_of_step) in [
            (settings.clone(), 0),
            (TrainSettings { gradient_accumulation_steps: 2, ..settings.clone() }, 0),
            (
                TrainSettings {
                    optimizer_in_backward: true,
                    gradient_accumulation_steps: 1,
                    ..settings.clone()
                },
                0,
            ),
            // Gradients by layer, and two kinds of weights that have moved.
            (TrainSettings { layer_norms_steps: Some(1), ..settings.clone() }, 1),
        ] {
            let mut trainer =
                Trainer::new(load("qwen3", dtype), &rows, settings, &Ledger::new()).unwrap();
            let before = waits().unwrap();
            trainer.train(&mut Patient::default()).unwrap();
            let found = waits().unwrap() - before;
            assert!(found >= 6 * waits_of_step, "{dtype:?}: {found}");
            assert!(waits_of_step > 0 || found == 0, "{dtype:?}: {found}");
        }
    }
    assert!(waits().unwrap() > before, "models are loaded, and that is waited for");
}
