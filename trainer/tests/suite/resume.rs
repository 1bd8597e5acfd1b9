//! Checkpoints: bit for bit, and never believed when broken.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::DType;
use chandler_durable::RealFs;
use chandler_model::CausalLm;
use chandler_trainer::{
    BoxError, Control, MomentsDtype, Observer, StepMetrics, TrainError, TrainSettings, Trainer,
    checkpoint_step,
};
use chandler_vram::{Category, Ledger};
use serde_json::json;

use crate::support::{golden, goldens, load, rows, settings};

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    let plain = TrainSettings::default();
    let lean = TrainSettings {
        moments: MomentsDtype::Blockwise8,
        master_weights: false,
        optimizer_in_backward: true,
        gradient_accumulation_steps: 1,
        ..plain.clone()
    };
    for (name, dtype, adapter, memory) in [
        ("qwen3", DType::F32, false, &plain),
        ("smol-llama", DType::BF16, false, &plain),
        ("gemma2", DType::F32, true, &plain),
        ("qwen3", DType::BF16, false, &lean),
    ] {
        let train = golden(name, "train.json");
        let rows = rows(&train["tokenized"]);
        let settings =
            TrainSettings { max_steps: Some(8), shuffle: true, ..settings(&train["hp"]) };
        let settings = TrainSettings {
            moments: memory.moments,
            master_weights: memory.master_weights,
            optimizer_in_backward: memory.optimizer_in_backward,
            gradient_accumulation_steps: memory.gradient_accumulation_steps,
            ..settings
        };
        let model = || {
            let mut model = load(name, dtype);
            if adapter {
                let folder = goldens().join("goldens").join(name).join("lora_before");
                model.load_adapter(&folder).unwrap();
            }
            model
        };
        let new = || Trainer::new(model(), &rows, settings.clone(), &Ledger::new()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-3");
        assert_eq!(checkpoint_step(&path), Some(3));
        let mut whole = new();
        for _ in 0..3 {
            whole.step().unwrap();
        }
        whole.write_checkpoint(&RealFs, &path, json!({ "note": 7 })).unwrap();
        let mut resumed = new();
        let taken_over = resumed.resume(&path).unwrap();
        assert_eq!(taken_over.extra, json!({ "note": 7 }));
        assert_eq!(taken_over.rounds_differently, None);
        assert_eq!(resumed.steps_done(), 3);
        for _ in 3..8 {
            let (a, b) = (whole.step().unwrap(), resumed.step().unwrap());
            assert_eq!(a.loss.to_bits(), b.loss.to_bits(), "{name} step {}", a.step);
            assert_eq!(a.grad_norm.to_bits(), b.grad_norm.to_bits(), "{name} step {}", a.step);
            assert_eq!((a.step, a.num_tokens), (b.step, b.num_tokens));
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_or_a_broken_one_is_refused() {
    let train = golden("qwen3", "train.json");
    let rows = rows(&train["tokenized"]);
    let settings = settings(&train["hp"]);
    let new = |settings: &TrainSettings| {
        Trainer::new(load("qwen3", DType::F32), &rows, settings.clone(), &Ledger::new()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint-0");
    new(&settings).write_checkpoint(&RealFs, &path, json!(null)).unwrap();
    let other = TrainSettings { learning_rate: 1.0, ..settings.clone() };
    let error = new(&other).resume(&path).unwrap_err();
    assert!(matches!(error, TrainError::OtherRun { what: "hyperparameters", .. }), "{error}");
    assert!(error.hint().is_some());
    let mut changed = rows.clone();
    changed[0].input_ids[0] += 1;
    let error = Trainer::new(load("qwen3", DType::F32), &changed, settings.clone(), &Ledger::new())
        .unwrap()
        .resume(&path)
        .unwrap_err();
    assert!(matches!(error, TrainError::OtherRun { what: "data", .. }), "{error}");
    let weights = path.join("weights.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    OpenOptions::new().write(true).open(&weights).unwrap().set_len(length - 1).unwrap();
    let error = new(&settings).resume(&path).unwrap_err();
    assert!(error.to_string().contains("weights.safetensors has"), "{error}");
    OpenOptions::new().append(true).open(&weights).unwrap().write_all(b"x").unwrap();
    assert!(new(&settings).resume(&path).is_err());
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_before_the_weights_move() {
    let train = golden("qwen3", "train.json");
    let rows = rows(&train["tokenized"]);
    let settings = TrainSettings {
        learning_rate: 1e30,
        warmup_steps: 0,
        max_steps: Some(9),
        ..settings(&train["hp"])
    };
    let mut trainer =
        Trainer::new(load("qwen3", DType::F32), &rows, settings, &Ledger::new()).unwrap();
    let error = (0..9).find_map(|_| trainer.step().err()).unwrap();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    assert!(error.hint().unwrap().contains("learning_rate"));
}

/// Has a checkpoint written after every second step.
struct Saver {
    folder: PathBuf,
    has_room: bool,
    /// In fresh memory.
    copies: usize,
    written: Vec<u64>,
    losses: Vec<u64>,
}

impl Observer for Saver {
    fn at_boundary(&mut self, step: u64, _: &CausalLm) -> Result<Control, BoxError> {
        let is_due = step > 0 && step.is_multiple_of(2);
        Ok(if is_due { Control::Checkpoint } else { Control::Continue })
    }

    fn step_done(&mut self, metrics: &StepMetrics) -> Result<(), BoxError> {
        self.losses.push(metrics.loss.to_bits());
        Ok(())
    }

    fn checkpoint_path(&mut self, step: u64) -> Result<Option<PathBuf>, BoxError> {
        Ok(Some(self.folder.join(format!("checkpoint-{step}"))))
    }

    fn has_room_for_copy(&mut self, bytes: u64) -> bool {
        self.copies += usize::from(bytes > 0);
        self.has_room
    }

    fn checkpoint_written(&mut self, step: u64, path: &Path) -> Result<(), BoxError> {
        assert!(path.join("manifest.json").exists(), "it is told when it is there");
        self.written.push(step);
        Ok(())
    }
}

#[test]
fn a_checkpoint_written_beside_the_training_has_the_bytes_of_one_written_between_steps() {
    let train = golden("qwen3", "train.json");
    let rows = rows(&train["tokenized"]);
    let settings = TrainSettings { max_steps: Some(6), ..settings(&train["hp"]) };
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new();
    let run = |name: &str, has_room: bool| {
        let folder = folder.path().join(name);
        let mut trainer =
            Trainer::new(load("qwen3", DType::F32), &rows, settings.clone(), &ledger).unwrap();
        let mut saver =
            Saver { folder: folder.clone(), has_room, copies: 0, written: vec![], losses: vec![] };
        trainer.train(&mut saver).unwrap();
        assert_eq!(saver.written, [2, 4, 6]);
        // Later copies may go where the first one was.
        assert!((1..=3).contains(&saver.copies), "asked {} times", saver.copies);
        let files = ["weights.safetensors", "optimizer.safetensors", "manifest.json"];
        let bytes = |step: u64| {
            files
                .map(|file| fs::read(folder.join(format!("checkpoint-{step}")).join(file)).unwrap())
        };
        (saver.losses, [2, 4, 6].map(bytes))
    };
    assert!(run("between", false) == run("beside", true));
    let categories = ledger.snapshot().categories;
    let copy = categories.iter().find(|line| line.category == Category::Checkpoint).unwrap();
    assert!(copy.peak > 0 && copy.bytes == 0, "the copy was entered, and is gone: {copy:?}");
}
