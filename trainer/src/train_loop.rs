//! The loop, on one screen, and the step that it repeats.

use std::time::Instant;

use candle_core::Tensor;
use chandler_data::Row;
use chandler_model::{CausalLm, Gradients};
use chandler_vram::{Category, Entry, Ledger};

use crate::optimizer::{AdamW, clip_coefficient, global_norm};
use crate::segments::forward_backward;
use crate::{
    BatchPlan, Control, MicroBatch, Observer, Rows, StepMetrics, TrainError, TrainSettings,
    num_items,
};

/// A run: a model, its optimizer, and where in the data it is.
pub struct Trainer<'a> {
    pub(crate) model: CausalLm,
    pub(crate) optimizer: AdamW,
    pub(crate) settings: TrainSettings,
    pub(crate) rows: &'a dyn Rows,
    pub(crate) plan: BatchPlan,
    /// Steps done.
    pub(crate) step: u64,
    pub(crate) num_tokens: u64,
    last_metrics: Option<StepMetrics>,
    ledger: Ledger,
    /// Weights, master weights and moments, entered as long as the run lives.
    resident: Vec<Entry>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The observer stopped it.
    Stopped,
}

impl Trainer<'_> {
    /// Trains until the last step or until the observer says stop.
    pub fn train(&mut self, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        loop {
            let control =
                observer.at_boundary(self.step, &self.model).map_err(TrainError::Observer)?;
            if control == Control::Checkpoint {
                self.checkpoint_for(observer)?;
            }
            if self.step >= self.plan.total_steps() {
                return Ok(Outcome::Finished);
            }
            if control == Control::Stop {
                return Ok(Outcome::Stopped);
            }
            let metrics = self.step()?;
            observer.step_done(&metrics).map_err(TrainError::Observer)?;
        }
    }

    /// One optimizer step: gradients of a global batch, clipped, applied.
    pub fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let started = Instant::now();
        let batches = self.read_batches()?;
        let items: usize = batches.iter().map(|rows| num_items(rows)).sum();
        let (number, rows) = (self.step + 1, batches.iter().map(Vec::len).sum());
        if items == 0 {
            return Err(TrainError::NothingToLearn { step: number, rows });
        }
        let mut gradients = Gradients::none(self.model.params());
        let mut held = self.ledger.enter(Category::Gradients, 0);
        let (mut loss_sum, mut accuracy, mut tokens) = (0.0, 0.0, 0);
        for rows in &batches {
            let batch = MicroBatch::new(rows);
            let score = self.accumulate(&batch, 1.0 / items as f64, &mut gradients)?;
            held.set(gradients.bytes() as u64);
            loss_sum += score.loss_sum;
            accuracy += score.num_correct as f64 / score.num_targets.max(1) as f64;
            tokens += batch.num_tokens() as u64;
        }
        let loss = finite(number, "loss", loss_sum / items as f64)?;
        let norm = finite(number, "gradient norm", global_norm(&gradients)?)?;
        let clip = clip_coefficient(norm, self.settings.max_grad_norm);
        let lr = self.learning_rate();
        self.optimizer.step(&self.model, &gradients, &self.settings, lr, number, clip)?;
        self.step = number;
        self.num_tokens += tokens;
        let metrics = StepMetrics {
            step: number,
            loss,
            grad_norm: norm,
            lr,
            num_tokens: self.num_tokens,
            mean_token_accuracy: accuracy / batches.len() as f64,
            epoch: number as f64 / self.plan.steps_per_epoch() as f64,
            tokens_per_s: tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        };
        self.last_metrics = Some(metrics);
        Ok(metrics)
    }

    fn read_batches(&mut self) -> Result<Vec<Vec<Row>>, TrainError> {
        let rows = self.rows;
        let read =
            |index: usize| rows.row(index).map_err(|source| TrainError::Row { index, source });
        let batches = self.plan.micro_batches(self.step);
        batches.into_iter().map(|batch| batch.into_iter().map(read).collect()).collect()
    }

    fn accumulate(
        &self,
        batch: &MicroBatch,
        loss_scale: f64,
        gradients: &mut Gradients,
    ) -> Result<chandler_model::Score, TrainError> {
        let kept = self.settings.kept_blocks.unwrap_or(usize::MAX).min(self.model.num_blocks());
        let mut activations = self.ledger.enter(Category::Activations, 0);
        let mut holds = |bytes: usize| activations.set(bytes as u64);
        forward_backward(&self.model, batch, loss_scale, kept, gradients, &mut holds)
    }

    /// The rate of the next step.
    fn learning_rate(&self) -> f64 {
        let total = self.plan.total_steps();
        let warmup = self.settings.warmup_of(total);
        let factor = self.settings.lr_scheduler_type.factor(self.step, warmup, total);
        self.settings.learning_rate * factor
    }
}

fn finite(step: u64, what: &'static str, value: f64) -> Result<f64, TrainError> {
    if value.is_finite() { Ok(value) } else { Err(TrainError::NotFinite { step, what, value }) }
}

impl<'a> Trainer<'a> {
    /// A run that has not begun. The trainable parameters are those that the model says are.
    pub fn new(
        model: CausalLm,
        rows: &'a dyn Rows,
        settings: TrainSettings,
        ledger: &Ledger,
    ) -> Result<Self, TrainError> {
        let plan = BatchPlan::new(rows.len(), &settings)?;
        let optimizer = AdamW::new(&model)?;
        let enter = |category, bytes: usize| ledger.enter(category, bytes as u64);
        let (moments, masters) = optimizer.bytes(&model);
        let resident = vec![
            enter(Category::Weights, model.params().bytes()),
            enter(Category::OptimizerState, moments),
            enter(Category::MasterWeights, masters),
        ];
        let ledger = ledger.clone();
        let (step, num_tokens, last_metrics) = (0, 0, None);
        Ok(Self {
            model,
            optimizer,
            settings,
            rows,
            plan,
            step,
            num_tokens,
            last_metrics,
            ledger,
            resident,
        })
    }

    /// The model as it stands.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.plan.total_steps()
    }

    /// What the last step of this process measured.
    pub fn last_metrics(&self) -> Option<&StepMetrics> {
        self.last_metrics.as_ref()
    }

    /// Bytes that the run holds between steps.
    pub fn resident_bytes(&self) -> u64 {
        self.resident.iter().map(Entry::bytes).sum()
    }

    /// Every parameter by name, in f32 where the optimizer has it so: what a saved model is made
    /// of.
    pub fn best_values(&self) -> Vec<(&str, &Tensor)> {
        let masters: std::collections::BTreeMap<&str, &Tensor> =
            self.optimizer.masters(&self.model).collect();
        let params = self.model.params().iter();
        params
            .map(|(_, param)| {
                let name = param.name.as_str();
                (name, masters.get(name).copied().unwrap_or(&param.value))
            })
            .collect()
    }

    /// Ends the training of an adapter: its product is added to the weights. A run without one
    /// stays as it is.
    pub fn merge_adapter(&mut self) -> Result<(), TrainError> {
        if self.model.lora().is_some() {
            self.optimizer = AdamW::none();
            self.model.merge_adapter()?;
        }
        Ok(())
    }
}
