//! The loop, on one screen, and the step that it repeats.

use std::time::Instant;

use candle_core::Tensor;
use chandler_data::Row;
use chandler_kernels::device;
use chandler_model::CausalLm;
use chandler_vram::{Category, Entry, Ledger, Shortage};

use crate::background::Background;
use crate::optimizer::{AdamW, Rate};
use crate::segments::forward_backward;
use crate::spare::Spare;
use crate::update::{Measured, Update};
use crate::{
    BatchPlan, Control, Fit, MicroBatch, Observer, Rows, StepMetrics, TrainError, TrainSettings,
    num_items,
};

/// A run: a model, its optimizer, and where in the data it is.
pub struct Trainer<'a> {
    pub(crate) model: CausalLm,
    pub(crate) optimizer: AdamW,
    pub(crate) settings: TrainSettings,
    pub(crate) rows: &'a dyn Rows,
    /// What tells the rows from others.
    pub(crate) digest: Option<String>,
    pub(crate) plan: BatchPlan,
    /// Steps done.
    pub(crate) step: u64,
    pub(crate) num_tokens: u64,
    /// What running out of memory has taught.
    pub(crate) fit: Fit,
    /// What taught it in the step that is going on.
    shortage: Option<Shortage>,
    last_metrics: Option<StepMetrics>,
    /// The checkpoint that is being written.
    pub(crate) background: Option<Background>,
    pub(crate) spare: Spare,
    pub(crate) ledger: Ledger,
    /// Weights, master weights and moments, entered as long as the run lives.
    resident: Vec<Entry>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done, or the observer finished it early.
    Finished,
    /// The observer stopped it.
    Stopped,
}

/// What a step has done.
struct Done {
    measured: Measured,
    lr: f64,
    tokens: u64,
}

impl Trainer<'_> {
    /// Trains until the last step or until the observer says stop.
    pub fn train(&mut self, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        loop {
            self.settle_checkpoint(observer, false)?;
            self.spare.review(observer);
            let control =
                observer.at_boundary(self.step, &self.model).map_err(TrainError::Observer)?;
            if control == Control::Checkpoint {
                self.checkpoint_for(observer)?;
            }
            let is_stopped = control == Control::Stop;
            let is_last = control == Control::Finish || self.step >= self.plan.total_steps();
            if is_stopped || is_last {
                self.settle_checkpoint(observer, true)?;
                self.spare.release();
                return Ok(if is_stopped { Outcome::Stopped } else { Outcome::Finished });
            }
            let at = self.step;
            let metrics = self.step();
            if let Some(shortage) = self.shortage.take() {
                observer.tightened(at, self.fit, &shortage).map_err(TrainError::Observer)?;
            }
            observer.step_done(&metrics?).map_err(TrainError::Observer)?;
        }
    }

    /// One optimizer step. Where memory runs out, the same step is done again in smaller pieces,
    /// which the run then stays with.
    pub fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let started = Instant::now();
        let batches = self.read_batches()?;
        let items: usize = batches.iter().map(|rows| num_items(rows)).sum();
        if items == 0 {
            let rows = batches.iter().map(Vec::len).sum();
            return Err(TrainError::NothingToLearn { step: self.step + 1, rows });
        }
        let done = loop {
            match self.try_step(&batches, items) {
                Err(TrainError::OutOfMemory { step, shortage, moved }) => {
                    // What waits for the next checkpoint goes first.
                    let eased = self.spare.release() || self.tighten(&batches, &shortage);
                    if moved || !eased {
                        return Err(TrainError::OutOfMemory { step, shortage, moved });
                    }
                }
                done => break done?,
            }
        };
        self.step += 1;
        self.num_tokens += done.tokens;
        let metrics = StepMetrics {
            step: self.step,
            loss: done.measured.loss,
            grad_norm: done.measured.grad_norm,
            lr: done.lr,
            num_tokens: self.num_tokens,
            mean_token_accuracy: done.measured.accuracy,
            epoch: self.step as f64 / self.plan.steps_per_epoch() as f64,
            tokens_per_s: done.tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
            layers: done.measured.layers,
        };
        self.last_metrics = Some(metrics.clone());
        Ok(metrics)
    }

    /// Gradients of a global batch, clipped, applied. Nothing has changed where this fails, but
    /// where the optimizer in the backward pass had begun.
    fn try_step(&self, batches: &[Vec<Row>], items: usize) -> Result<Done, TrainError> {
        let Self { model, optimizer, settings, ledger, fit, .. } = self;
        let rate = Rate { lr: self.learning_rate(), step: self.step + 1 };
        let mut gradients = optimizer.no_gradients(model);
        let mut update = Update::new(model, optimizer, settings, ledger, rate, items);
        let mut tokens = 0;
        for rows in batches {
            update.begin_batch();
            for rows in rows.chunks(fit.rows_of(rows.len())) {
                let batch = MicroBatch::new(rows);
                let kept = fit.kept_of(settings.kept_blocks_of(model, batch.num_tokens()));
                let scale = 1.0 / items as f64;
                forward_backward(model, &batch, scale, kept, &mut gradients, &mut update)
                    .map_err(|error| update.failed(error))?;
                tokens += batch.num_tokens() as u64;
            }
        }
        let measured = update.finish(&gradients)?;
        Ok(Done { measured, lr: rate.lr, tokens })
    }

    /// Makes room after memory ran out; whether there is anything left to cut.
    fn tighten(&mut self, batches: &[Vec<Row>], shortage: &Shortage) -> bool {
        let most =
            |count: &dyn Fn(&Vec<Row>) -> usize| batches.iter().map(count).max().unwrap_or(0);
        let rows = most(&|rows| self.fit.rows_of(rows.len()));
        let blocks = most(&|rows| {
            let tokens =
                rows.iter().take(self.fit.rows_of(rows.len())).map(|row| row.input_ids.len());
            self.fit.kept_of(self.settings.kept_blocks_of(&self.model, tokens.sum()))
        });
        // A batch that is cut would move the weights between its pieces.
        let cut = !self.settings.optimizer_in_backward;
        let Some(fit) = self.fit.tighter(rows, blocks, cut) else { return false };
        if device::give_back(self.model.device()).is_err() {
            return false;
        }
        self.fit = fit;
        self.shortage = Some(shortage.clone());
        true
    }

    fn read_batches(&mut self) -> Result<Vec<Vec<Row>>, TrainError> {
        let rows = self.rows;
        let read =
            |index: usize| rows.row(index).map_err(|source| TrainError::Row { index, source });
        let batches = self.plan.micro_batches(self.step);
        batches.into_iter().map(|batch| batch.into_iter().map(read).collect()).collect()
    }

    /// The rate of the next step.
    fn learning_rate(&self) -> f64 {
        let total = self.plan.total_steps();
        let warmup = self.settings.warmup_of(total);
        let factor = self.settings.lr_scheduler_type.factor(self.step, warmup, total);
        self.settings.learning_rate * factor
    }
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
        settings.check(&model)?;
        let optimizer = AdamW::new(&model, &settings)?;
        let enter = |category, bytes: usize| ledger.enter(category, bytes as u64);
        let (moments, masters) = optimizer.bytes();
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
            digest: rows.digest(),
            rows,
            plan,
            step,
            num_tokens,
            fit: Fit::default(),
            shortage: None,
            last_metrics,
            background: None,
            spare: Spare::default(),
            ledger,
            resident,
        })
    }

    /// The model as it stands.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// Begins within a fit that an earlier run has found.
    #[must_use]
    pub fn within(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// What running out of memory has taught so far.
    pub fn fit(&self) -> Fit {
        self.fit
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
