//! What a run will use, from shapes alone.
//!
//! | letter | meaning |
//! |---|---|
//! | L, E, F, V | layers, hidden size, feed-forward size, vocabulary |
//! | Q, K | width of all query heads, of all key/value heads |
//! | N | tokens of a micro-batch |
//! | b | bytes of an element that the model computes with |
//!
//! A peak is that of the moment which holds the most: `step` goes through the moments of a training
//! step, `block` through those within a block, `answers` through those of an evaluation. On the CPU
//! the buffers of the ops stay in their pool from one op to the next, so they count at every moment;
//! on a GPU they count at that of their op.

mod answers;
mod block;
mod choose;
mod shapes;
mod step;

use std::fmt;

use serde::Serialize;

pub use choose::{Choice, choose, most_that_fits};
pub use shapes::{EvalShape, ModelShape, Passing, TrainShape};

use crate::{Bytes, Category};

/// Bytes by category, and the peaks of training and of evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One line for each category.
    pub lines: Vec<Line>,
    /// What is there all the time: weights, master weights, optimizer state.
    pub resident: u64,
    /// The most that training uses.
    pub train_peak: u64,
    /// The most that an evaluation uses; 0 without one.
    pub eval_peak: u64,
    /// The larger of the two.
    pub peak: u64,
    /// The copy from which a checkpoint is written while training goes on: the trained weights as
    /// precisely as there are, and the optimizer's state. It is only made where it fits beside the
    /// peak, and is no part of it. 0 on a GPU, whose checkpoints are copied into the machine's memory.
    pub checkpoint: u64,
    /// Bytes that may be used, where that is known.
    pub budget: Option<u64>,
    /// Whether the peak is within the budget.
    pub fits: Option<bool>,
}

/// One category of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What for.
    pub category: Category,
    /// How much.
    pub bytes: u64,
    /// How it is computed.
    pub formula: &'static str,
    /// Present in training only, in evaluation only, or always.
    pub phase: &'static str,
}

/// Plans a run; without `eval` there is no evaluation, without `budget` no verdict.
pub fn plan(
    model: &ModelShape,
    train: &TrainShape,
    eval: Option<&EvalShape>,
    budget: Option<u64>,
) -> Plan {
    let b = model.element_bytes;
    let vectors = model.trainable_vector_params;
    let matrices = model.trainable_params.saturating_sub(vectors);
    let masters = match (b < 4, train.master_weights) {
        (true, true) => 4 * model.trainable_params,
        (true, false) => 4 * vectors,
        (false, _) => 0,
    };
    let moments = (matrices * train.moment_bytes_per_256).div_ceil(256) + 8 * vectors;
    let kv =
        eval.map_or(0, |eval| 2 * model.layers * eval.batch * eval.tokens * model.kv_width * b);
    let answers = eval.map_or(0, |eval| answers::most(model, eval, kv));
    let resident = model.params * b + masters + moments;
    let held = step::most(model, train);
    let line = |category, bytes, formula, phase| Line { category, bytes, formula, phase };
    let mut lines = vec![
        line(Category::Weights, model.params * b, "params · b", "always"),
        line(
            Category::MasterWeights,
            masters,
            "trainable · 4 (norms and biases alone without master weights), if b < 4",
            "always",
        ),
        line(Category::OptimizerState, moments, "trainable · 8, matrices 2.03 in 8 bits", "always"),
        line(
            Category::Gradients,
            held.gradients,
            "trainable · 4 (b without master weights) of what has them at the peak",
            "train",
        ),
        line(
            Category::Activations,
            held.activations,
            "kept · N · (2E + 2Q + 2K + 2F [+ 2E]) · b + others · N · E · b, of what waits at the peak",
            "train",
        ),
        line(
            Category::Workspace,
            held.workspace,
            "buffers of the ops; of a block, or of the loss, what it works with; tokens",
            "train",
        ),
    ];
    if eval.is_some() {
        lines.push(line(Category::KvCache, kv, "2 · L · batch · tokens · K · b", "eval"));
        let formula =
            "buffers of the ops; prompts in the blocks, or logits, or a row that is scored";
        lines.push(line(Category::Workspace, answers, formula, "eval"));
    } else {
        lines.push(line(Category::KvCache, 0, "2 · L · batch · tokens · K · b", "eval"));
    }
    let train_peak = resident + held.bytes();
    let eval_peak = if eval.is_some() { resident + kv + answers } else { 0 };
    let peak = train_peak.max(eval_peak);
    let fits = budget.map(|budget| peak <= budget);
    let precise = if b < 4 && !train.master_weights {
        matrices * b + 4 * vectors
    } else {
        4 * model.trainable_params
    };
    let checkpoint = precise + moments;
    Plan { lines, resident, train_peak, eval_peak, peak, checkpoint, budget, fits }
}

impl Plan {
    /// With what the driver takes of a GPU for the process: the CUDA context, the code of kernels, what
    /// cuBLAS works with.
    #[must_use]
    pub fn with_context(mut self, bytes: u64) -> Self {
        let (category, phase) = (Category::Context, "always");
        let formula = "taken for granted: the driver's, for kernels and cuBLAS";
        self.lines.insert(0, Line { category, bytes, formula, phase });
        self.resident += bytes;
        self.train_peak += bytes;
        self.eval_peak += if self.eval_peak > 0 { bytes } else { 0 };
        self.peak += bytes;
        self.fits = self.budget.map(|budget| self.peak <= budget);
        self
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for line in self.lines.iter().filter(|line| line.bytes > 0) {
            let bytes = Bytes(line.bytes).to_string();
            writeln!(f, "  {:<16}{bytes:>12}  {:<7} {}", line.category, line.phase, line.formula)?;
        }
        let total =
            |name: &str, bytes: u64| format!("  {name:<16}{:>12}", Bytes(bytes).to_string());
        writeln!(f, "{}", total("training peak", self.train_peak))?;
        writeln!(f, "{}", total("eval peak", self.eval_peak))?;
        if self.checkpoint > 0 {
            let beside = match self.budget.map(|budget| self.peak + self.checkpoint <= budget) {
                Some(true) => {
                    "fits beside the peak: checkpoints are written while training goes on"
                }
                Some(false) => "does not fit beside the peak: training waits for its checkpoints",
                None => "beside the peak, where there is room",
            };
            writeln!(f, "{}  {beside}", total("checkpoint copy", self.checkpoint))?;
        }
        match self.budget {
            Some(budget) => {
                writeln!(f, "{}", total("available", budget))?;
                let verdict = if self.peak <= budget { "fits" } else { "does NOT fit" };
                write!(f, "  {verdict}")
            }
            None => write!(f, "  available: unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn small() -> ModelShape {
        ModelShape {
            params: 1000,
            trainable_params: 1000,
            trainable_vector_params: 0,
            trainable_head_params: 0,
            trainable_attention_params: 80,
            trainable_feed_forward_params: 120,
            layers: 4,
            hidden: 8,
            intermediate: 16,
            query_width: 8,
            kv_width: 4,
            head_dim: 4,
            vocab: 32,
            element_bytes: 4,
            post_norms: false,
            qk_norms: false,
            sliding_angles: false,
            capped_logits: false,
            adapter_rank: 0,
        }
    }

    pub(super) const TRAIN: TrainShape = TrainShape {
        micro_batch_tokens: 10,
        micro_batches: 1,
        kept_blocks: 4,
        master_weights: true,
        moment_bytes_per_256: 2048,
        optimizer_in_backward: false,
        workspace: 0,
        passing: Passing::NONE,
    };

    fn bytes(plan: &Plan, category: Category) -> u64 {
        plan.lines.iter().find(|line| line.category == category).unwrap().bytes
    }

    #[test]
    fn what_is_always_there_by_hand() {
        let eval = EvalShape {
            batch: 2,
            tokens: 100,
            prompt_tokens: 60,
            prefill_tokens: 1024,
            scored_tokens: 0,
            workspace: 70_000,
            passing: Passing::default(),
        };
        let full = plan(&small(), &TRAIN, Some(&eval), Some(1));
        assert_eq!(bytes(&full, Category::Weights), 4000);
        assert_eq!(bytes(&full, Category::OptimizerState), 8000);
        assert_eq!(full.resident, 12_000);
        assert_eq!(full.checkpoint, 4000 + 8000);
        assert_eq!(bytes(&full, Category::KvCache), 2 * 4 * 2 * 100 * 4 * 4);
        assert_eq!(full.fits, Some(false));
        // Both prompts at once: x, normed, middle, the product of down; q, the
        // attention's output of both; k and v; gate, up and gated. The angles of 2 pairs, the id,
        // the position.
        let token = 4 * (4 * 8 + 2 * 8 + 2 * 4 + 3 * 16) + 4 * 4 + 4 + 8;
        assert_eq!(full.eval_peak, 12_000 + 25_600 + 70_000 + 120 * token);
        let table = full.to_string();
        assert!(table.contains("does NOT fit") && table.contains("kv_cache"), "{table}");
    }

    #[test]
    fn rows_are_scored_without_a_cache() {
        let eval = EvalShape {
            batch: 1,
            tokens: 10,
            prompt_tokens: 1,
            prefill_tokens: 1024,
            scored_tokens: 1000,
            workspace: 0,
            passing: Passing::NONE,
        };
        let peak = |eval| plan(&small(), &TRAIN, Some(&eval), None).eval_peak;
        let longer = EvalShape { tokens: 20, ..eval };
        assert_eq!(peak(eval), peak(longer), "the scored row is the most in both");
        let none = EvalShape { scored_tokens: 0, ..eval };
        assert!(peak(EvalShape { tokens: 20, ..none }) > peak(none));
    }

    #[test]
    fn bf16_has_masters_and_norms_always_do() {
        let model = ModelShape { element_bytes: 2, trainable_vector_params: 60, ..small() };
        let lean = plan(&model, &TRAIN, None, None);
        assert_eq!(bytes(&lean, Category::MasterWeights), 4000);
        assert_eq!((lean.eval_peak, lean.fits), (0, None));
        assert!(lean.to_string().contains("unknown"));
        let pure = TrainShape { master_weights: false, moment_bytes_per_256: 520, ..TRAIN };
        let pure = plan(&model, &pure, None, None);
        assert_eq!(bytes(&pure, Category::MasterWeights), 240);
        assert_eq!(bytes(&pure, Category::OptimizerState), (940u64 * 520).div_ceil(256) + 480);
    }

    #[test]
    fn narrow_gradients_that_leave_early_take_less() {
        let model = ModelShape { element_bytes: 2, ..small() };
        let train = TrainShape { master_weights: false, optimizer_in_backward: true, ..TRAIN };
        // Of the embedding, which is the head, and of a block.
        assert!(bytes(&plan(&model, &train, None, None), Category::Gradients) <= 2 * (200 + 200));
    }

    #[test]
    fn a_context_is_there_all_the_time() {
        let bare = plan(&small(), &TRAIN, None, Some(30_000));
        let on_gpu = bare.clone().with_context(1000);
        assert_eq!(bytes(&on_gpu, Category::Context), 1000);
        assert_eq!(on_gpu.resident, bare.resident + 1000);
        assert_eq!((on_gpu.peak, on_gpu.eval_peak), (bare.peak + 1000, 0));
        let exact = Plan { budget: Some(bare.peak), ..bare };
        assert_eq!(exact.with_context(1).fits, Some(false));
    }

    #[test]
    fn a_frozen_base_costs_its_weights_alone() {
        let model = ModelShape {
            trainable_params: 40,
            trainable_attention_params: 4,
            trainable_feed_forward_params: 6,
            adapter_rank: 1,
            ..small()
        };
        let lora = plan(&model, &TRAIN, None, None);
        assert!(bytes(&lora, Category::Gradients) <= 160);
        assert_eq!(lora.resident, 4000 + 320);
    }
}
