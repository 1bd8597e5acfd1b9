//! What a run will use, from shapes alone.
//!
//! | letter | meaning |
//! |---|---|
//! | L, E, F, V | layers, hidden size, feed-forward size, vocabulary |
//! | Q, K | width of all query heads, of all key/value heads |
//! | N | tokens of a micro-batch |
//! | b | bytes of an element that the model computes with |

use std::fmt;

use serde::Serialize;

use crate::{Bytes, Category};

/// The shape of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ModelShape {
    /// Parameters, tied ones once; those of an adapter included.
    pub params: u64,
    /// Of those, how many are trained.
    pub trainable_params: u64,
    /// Those of one block that are trained.
    pub trainable_block_params: u64,
    /// L.
    pub layers: u64,
    /// E.
    pub hidden: u64,
    /// F.
    pub intermediate: u64,
    /// Q.
    pub query_width: u64,
    /// K.
    pub kv_width: u64,
    /// V.
    pub vocab: u64,
    /// b: 4 for f32, 2 for bf16.
    pub element_bytes: u64,
    /// Each half of a block has a norm at its end, whose input is kept too.
    pub post_norms: bool,
}

/// The shape of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrainShape {
    /// N.
    pub micro_batch_tokens: u64,
    /// Blocks whose activations are kept; the others are computed again.
    pub kept_blocks: u64,
    /// Where the model computes in a narrower type, f32 weights stand beside its own; without them
    /// gradients are in the model's type too.
    pub master_weights: bool,
    /// Bytes of both moments of 256 parameters of a matrix: 2048 in f32, 520 in 8 bits with a scale
    /// for each block.
    pub moment_bytes_per_256: u64,
    /// Gradients leave as soon as their block is done.
    pub optimizer_in_backward: bool,
    /// What the loss holds while it runs, beside its inputs and gradients.
    pub loss_workspace: u64,
    /// What every other op holds while it runs.
    pub op_workspace: u64,
}

/// The shape of an evaluation by generating.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EvalShape {
    /// Prompts side by side.
    pub batch: u64,
    /// Tokens of the longest prompt and its answer.
    pub tokens: u64,
}

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
    let masters = if b < 4 && train.master_weights { 4 * model.trainable_params } else { 0 };
    let moments = (model.trainable_params * train.moment_bytes_per_256).div_ceil(256);
    let kv =
        eval.map_or(0, |eval| 2 * model.layers * eval.batch * eval.tokens * model.kv_width * b);
    let resident = model.params * b + masters + moments;
    let moment = training_peak(model, train);
    let line = |category, bytes, formula, phase| Line { category, bytes, formula, phase };
    let lines = vec![
        line(Category::Weights, model.params * b, "params · b", "always"),
        line(Category::MasterWeights, masters, "trainable · 4, if b < 4", "always"),
        line(Category::OptimizerState, moments, "trainable · 8, or 2.03 in 8 bits", "always"),
        line(
            Category::Gradients,
            moment.gradients,
            "trainable · 4 (b without master weights) of the blocks that are done",
            "train",
        ),
        line(
            Category::Activations,
            moment.activations,
            "kept · N · (2E + 2Q + 2K + 2F [+ 2E]) · b + others · N · E · b",
            "train",
        ),
        line(Category::Workspace, moment.workspace, "of the loss, or of a block", "train"),
        line(Category::KvCache, kv, "2 · L · batch · tokens · K · b", "eval"),
    ];
    let train_peak = resident + moment.bytes();
    let eval_peak = if eval.is_some() { resident + kv + train.op_workspace } else { 0 };
    let peak = train_peak.max(eval_peak);
    let fits = budget.map(|budget| peak <= budget);
    Plan { lines, resident, train_peak, eval_peak, peak, budget, fits }
}

/// What training holds beside what is always there, at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    gradients: u64,
    activations: u64,
    workspace: u64,
}

impl Moment {
    fn bytes(self) -> u64 {
        self.gradients + self.activations + self.workspace
    }
}

/// The moment at which a step holds the most: at the loss, where all activations wait, or in the
/// backward pass of some block, when those of later blocks are gone and their gradients are there.
fn training_peak(model: &ModelShape, train: &TrainShape) -> Moment {
    let (b, n) = (model.element_bytes, train.micro_batch_tokens);
    let norms = if model.post_norms { 2 * model.hidden } else { 0 };
    let kept_width =
        2 * model.hidden + 2 * model.query_width + 2 * model.kv_width + 2 * model.intermediate;
    let (saved, input) = (n * (kept_width + norms) * b, n * model.hidden * b);
    let kept = train.kept_blocks.min(model.layers);
    // What waits of blocks 0..count.
    let waiting = |count: u64| {
        let recomputed = count.min(model.layers - kept);
        recomputed * input + (count - recomputed) * saved
    };
    let element = if train.master_weights { 4 } else { b };
    let block_gradients = element * model.trainable_block_params;
    let embedding_gradients =
        element * (model.trainable_params - model.layers * model.trainable_block_params);
    let streams = 4 * input;
    let at_loss = Moment {
        gradients: embedding_gradients,
        activations: waiting(model.layers),
        workspace: train.loss_workspace + streams,
    };
    // The feed-forward's three gradients, or those of attention and its queries and keys again.
    let in_block = n * b * (3 * model.intermediate).max(3 * (model.query_width + model.kv_width));
    let in_backward = |index: u64| {
        let blocks = if train.optimizer_in_backward { 1 } else { model.layers - index };
        Moment {
            gradients: embedding_gradients + blocks * block_gradients,
            activations: waiting(index) + saved,
            workspace: train.op_workspace + streams + in_block,
        }
    };
    let all = (0..model.layers).map(in_backward).chain([at_loss]);
    all.max_by_key(|moment| moment.bytes()).unwrap_or_default()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for line in self.lines.iter().filter(|line| line.bytes > 0) {
            let bytes = Bytes(line.bytes).to_string();
            writeln!(f, "  {:<16}{bytes:>12}  {:<7} {}", line.category, line.phase, line.formula)?;
        }
        let mut total =
            |name: &str, bytes: u64| writeln!(f, "  {name:<16}{:>12}", Bytes(bytes).to_string());
        total("training peak", self.train_peak)?;
        total("eval peak", self.eval_peak)?;
        match self.budget {
            Some(budget) => {
                total("available", budget)?;
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

    fn small() -> ModelShape {
        ModelShape {
            params: 1000,
            trainable_params: 1000,
            trainable_block_params: 200,
            layers: 4,
            hidden: 8,
            intermediate: 16,
            query_width: 8,
            kv_width: 4,
            vocab: 32,
            element_bytes: 4,
            post_norms: false,
        }
    }

    const TRAIN: TrainShape = TrainShape {
        micro_batch_tokens: 10,
        kept_blocks: 4,
        master_weights: true,
        moment_bytes_per_256: 2048,
        optimizer_in_backward: false,
        loss_workspace: 100_000,
        op_workspace: 0,
    };

    fn bytes(plan: &Plan, category: Category) -> u64 {
        plan.lines.iter().find(|line| line.category == category).unwrap().bytes
    }

    #[test]
    fn the_formulas_by_hand() {
        let eval = EvalShape { batch: 2, tokens: 100 };
        let full = plan(&small(), &TRAIN, Some(&eval), Some(1));
        assert_eq!(bytes(&full, Category::Weights), 4000);
        assert_eq!(bytes(&full, Category::OptimizerState), 8000);
        // At the loss: its workspace is larger than any block's gradients.
        let saved = 10 * (16 + 16 + 8 + 32) * 4;
        assert_eq!(bytes(&full, Category::Activations), 4 * saved);
        assert_eq!(bytes(&full, Category::Gradients), 4 * 200);
        assert_eq!(full.train_peak, 12_000 + 4 * saved + 800 + 100_000 + 4 * 10 * 8 * 4);
        assert_eq!(bytes(&full, Category::KvCache), 2 * 4 * 2 * 100 * 4 * 4);
        assert_eq!(full.fits, Some(false));
        assert_eq!(full.eval_peak, 12_000 + 25_600);
        let table = full.to_string();
        assert!(table.contains("does NOT fit") && table.contains("kv_cache"), "{table}");
    }

    #[test]
    fn recomputing_keeps_inputs_alone_and_bf16_has_masters() {
        let train = TrainShape { kept_blocks: 0, loss_workspace: 0, ..TRAIN };
        let model = ModelShape { element_bytes: 2, ..small() };
        let lean = plan(&model, &train, None, None);
        // The first block's backward pass is the last: every gradient, and its own activations.
        assert_eq!(bytes(&lean, Category::Activations), 10 * 72 * 2);
        assert_eq!(bytes(&lean, Category::Gradients), 4000);
        assert_eq!(bytes(&lean, Category::MasterWeights), 4000);
        assert_eq!((lean.eval_peak, lean.fits), (0, None));
        assert!(lean.to_string().contains("unknown"));
    }

    #[test]
    fn narrow_states_and_gradients_that_leave_early_take_less() {
        let model = ModelShape { element_bytes: 2, ..small() };
        let train = TrainShape {
            master_weights: false,
            moment_bytes_per_256: 520,
            optimizer_in_backward: true,
            loss_workspace: 0,
            ..TRAIN
        };
        let lean = plan(&model, &train, None, None);
        assert_eq!(bytes(&lean, Category::MasterWeights), 0);
        assert_eq!(bytes(&lean, Category::OptimizerState), (1000u64 * 520).div_ceil(256));
        assert_eq!(bytes(&lean, Category::Gradients), 2 * (200 + 200));
    }

    #[test]
    fn a_frozen_base_costs_its_weights_alone() {
        let model = ModelShape { trainable_params: 40, trainable_block_params: 10, ..small() };
        let lora = plan(&model, &TrainShape { loss_workspace: 0, ..TRAIN }, None, None);
        assert!(bytes(&lora, Category::Gradients) <= 160);
        assert_eq!(lora.resident, 4000 + 320);
    }
}
