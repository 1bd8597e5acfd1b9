//! The loop, on one screen, and the step that it repeats.

use std::time::Instant;

use candle_core::Tensor;
use chandler_data::Row;
use chandler_kernels::device;
use chandler_model::CausalLm;
use chandler_vram::{Category, Entry, Ledger, Shortage};

use crate::background::Background;
use crate::found::Found;
use crate::optimizer::{AdamW, Rate};
use crate::segments::forward_backward;
use crate::spare::Spare;
use crate::update::Update;
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
    /// The step whose metrics nobody has waited for yet.
    unread: Option<Begun>,
    /// When the last metrics were read.
    read: Option<Instant>,
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

/// A step that is done, or that a GPU has been given to do.
struct Begun {
    step: u64,
    /// Of the run, this step's included.
    num_tokens: u64,
    tokens: u64,
    began: Instant,
    found: Found,
}

impl Trainer<'_> {
    /// Trains until the last step or until the observer says stop.
    pub fn train(&mut self, observer: &mut dyn Observer) -> Result<Outcome, TrainError> {
        loop {
            let is_last = self.step >= self.plan.total_steps();
            // A step that measures its layers looks at numbers on the way, and moves weights by them.
            let looks = self.settings.measures_layers(self.step + 1);
            if is_last || looks || !observer.metrics_may_be_late(self.step) {
                self.tell_metrics(observer)?;
            }
            self.settle_checkpoint(observer, false)?;
            self.spare.review(observer);
            let control =
                observer.at_boundary(self.step, &self.model).map_err(TrainError::Observer)?;
            if control != Control::Continue {
                self.tell_metrics(observer)?;
            }
            if control == Control::Checkpoint {
                self.checkpoint_for(observer)?;
            }
            let is_stopped = control == Control::Stop;
            if is_stopped || control == Control::Finish || is_last {
                self.settle_checkpoint(observer, true)?;
                self.spare.release();
                return Ok(if is_stopped { Outcome::Stopped } else { Outcome::Finished });
            }
            let at = self.step;
            let begun = self.begin_step();
            if let Some(shortage) = self.shortage.take() {
                observer.tightened(at, self.fit, &shortage).map_err(TrainError::Observer)?;
            }
            // A GPU is at the new step while the host looks at the one before.
            self.tell_metrics(observer)?;
            if self.unread.insert(begun?).found.is_known() {
                self.tell_metrics(observer)?;
            }
        }
    }

    /// One optimizer step, which a GPU is waited for. Where memory runs out, the same step is done
    /// again in smaller pieces, which the run then stays with.
    pub fn step(&mut self) -> Result<StepMetrics, TrainError> {
        let begun = self.begin_step()?;
        self.read_metrics(begun)
    }

    /// Does a step, or hands it over.
    fn begin_step(&mut self) -> Result<Begun, TrainError> {
        let began = Instant::now();
        let batches = self.read_batches()?;
        let items: usize = batches.iter().map(|rows| num_items(rows)).sum();
        if items == 0 {
            let rows = batches.iter().map(Vec::len).sum();
            return Err(TrainError::NothingToLearn { step: self.step + 1, rows });
        }
        let (found, tokens) = loop {
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
        self.num_tokens += tokens;
        Ok(Begun { step: self.step, num_tokens: self.num_tokens, tokens, began, found })
    }

    /// What a step has measured, which a GPU is waited for.
    fn read_metrics(&mut self, begun: Begun) -> Result<StepMetrics, TrainError> {
        let Begun { step, num_tokens, tokens, began, found } = begun;
        let lr = found.rate.lr;
        let measured = found.wait()?;
        // A step that was handed over early began when the one before was done.
        let began = self.read.map_or(began, |read| read.max(began));
        self.read = Some(Instant::now());
        let metrics = StepMetrics {
            step,
            loss: measured.loss,
            grad_norm: measured.grad_norm,
            lr,
            num_tokens,
            mean_token_accuracy: measured.accuracy,
            epoch: step as f64 / self.plan.steps_per_epoch() as f64,
            tokens_per_s: tokens as f64 / began.elapsed().as_secs_f64().max(1e-9),
            layers: measured.layers,
        };
        self.last_metrics = Some(metrics.clone());
        Ok(metrics)
    }

    /// Tells the observer of the step that it has not heard of yet, if there is one.
    fn tell_metrics(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let Some(begun) = self.unread.take() else { return Ok(()) };
        let metrics = self.read_metrics(begun)?;
        observer.step_done(&metrics).map_err(TrainError::Observer)
    }

    /// Gradients of a global batch, clipped, applied. Nothing has changed where this fails, but
    /// where the optimizer in the backward pass had begun.
    fn try_step(&self, batches: &[Vec<Row>], items: usize) -> Result<(Found, u64), TrainError> {
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
        Ok((update.finish(&gradients)?, tokens))
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
            unread: None,
            read: None,
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
