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
    /// L.
    pub layers: u64,
    /// E.
    pub hidden: u64,
    /// F.
    pub intermediate: u64,
    /// Query heads.
    pub heads: u64,
    /// Q.
    pub query_width: u64,
    /// K.
    pub kv_width: u64,
    /// V.
    pub vocab: u64,
    /// b: 4 for f32, 2 for bf16.
    pub element_bytes: u64,
    /// Query and key heads have norms, whose inputs are kept too.
    pub qk_norm: bool,
    /// Each half of a block has a norm at its end, whose input is kept too.
    pub post_norms: bool,
}

/// The shape of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrainShape {
    /// N.
    pub micro_batch_tokens: u64,
    /// Tokens of the longest document.
    pub longest_document: u64,
    /// Blocks whose activations are kept; the others are computed again.
    pub kept_blocks: u64,
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

/// Scratch that an operation may hold: the chunk of logits and its copies (at most 16 MiB each),
/// and the attention scores of 256 queries.
fn workspace(model: &ModelShape, train: &TrainShape) -> u64 {
    const LOGITS_CHUNK: u64 = 16 << 20;
    let logits =
        4 * (train.micro_batch_tokens * model.vocab * 4).min(LOGITS_CHUNK.max(model.vocab * 4));
    let scores = 3 * 4 * 256.min(train.longest_document) * train.longest_document * model.heads;
    let feed_forward = 3 * train.micro_batch_tokens * model.intermediate * model.element_bytes;
    logits + scores + feed_forward
}

/// Plans a run; without `eval` there is no evaluation, without `budget` no verdict.
pub fn plan(
    model: &ModelShape,
    train: &TrainShape,
    eval: Option<&EvalShape>,
    budget: Option<u64>,
) -> Plan {
    let b = model.element_bytes;
    let n = train.micro_batch_tokens;
    let mut kept_width =
        2 * model.hidden + 2 * model.query_width + 2 * model.kv_width + 2 * model.intermediate;
    if model.qk_norm {
        kept_width += model.query_width + model.kv_width;
    }
    if model.post_norms {
        kept_width += 2 * model.hidden;
    }
    let kept = train.kept_blocks.min(model.layers);
    let inputs = (model.layers - kept) * n * model.hidden * b;
    // One recomputed block is whole while its backward pass runs.
    let recomputed = if kept < model.layers { n * kept_width * b } else { 0 };
    let line = |category, bytes, formula, phase| Line { category, bytes, formula, phase };
    let masters = if b < 4 { 4 * model.trainable_params } else { 0 };
    let kv =
        eval.map_or(0, |eval| 2 * model.layers * eval.batch * eval.tokens * model.kv_width * b);
    let lines = vec![
        line(Category::Weights, model.params * b, "params · b", "always"),
        line(Category::MasterWeights, masters, "trainable · 4, if b < 4", "always"),
        line(Category::OptimizerState, 8 * model.trainable_params, "trainable · 8", "always"),
        line(Category::Gradients, 4 * model.trainable_params, "trainable · 4", "train"),
        line(
            Category::Activations,
            kept * n * kept_width * b + inputs + recomputed,
            "kept · N · (2E + 2Q + 2K + 2F [+ Q + K] [+ 2E]) · b + others · N · E · b",
            "train",
        ),
        line(
            Category::Workspace,
            workspace(model, train),
            "logits + scores + 3 · N · F · b",
            "train",
        ),
        line(Category::KvCache, kv, "2 · L · batch · tokens · K · b", "eval"),
    ];
    let sum = |phases: &[&str]| -> u64 {
        lines.iter().filter(|line| phases.contains(&line.phase)).map(|line| line.bytes).sum()
    };
    let resident = sum(&["always"]);
    let train_peak = sum(&["always", "train"]);
    let eval_peak = if eval.is_some() { sum(&["always", "eval"]) } else { 0 };
    let peak = train_peak.max(eval_peak);
    let fits = budget.map(|budget| peak <= budget);
    Plan { lines, resident, train_peak, eval_peak, peak, budget, fits }
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
            layers: 4,
            hidden: 8,
            intermediate: 16,
            heads: 2,
            query_width: 8,
            kv_width: 4,
            vocab: 32,
            element_bytes: 4,
            qk_norm: false,
            post_norms: false,
        }
    }

    fn bytes(plan: &Plan, category: Category) -> u64 {
        plan.lines.iter().find(|line| line.category == category).unwrap().bytes
    }

    #[test]
    fn the_formulas_by_hand() {
        let train = TrainShape { micro_batch_tokens: 10, longest_document: 5, kept_blocks: 4 };
        let eval = EvalShape { batch: 2, tokens: 100 };
        let full = plan(&small(), &train, Some(&eval), Some(1));
        assert_eq!(bytes(&full, Category::Weights), 4000);
        assert_eq!(bytes(&full, Category::OptimizerState), 8000);
        assert_eq!(bytes(&full, Category::Activations), 4 * 10 * (16 + 16 + 8 + 32) * 4);
        assert_eq!(bytes(&full, Category::KvCache), 2 * 4 * 2 * 100 * 4 * 4);
        assert_eq!(full.fits, Some(false));
        assert_eq!(full.eval_peak, 12_000 + 25_600);
        let table = full.to_string();
        assert!(table.contains("does NOT fit") && table.contains("kv_cache"), "{table}");
    }

    #[test]
    fn recomputing_keeps_inputs_alone_and_bf16_has_masters() {
        let train = TrainShape { micro_batch_tokens: 10, longest_document: 5, kept_blocks: 0 };
        let model = ModelShape { element_bytes: 2, ..small() };
        let lean = plan(&model, &train, None, None);
        assert_eq!(bytes(&lean, Category::Activations), 4 * 10 * 8 * 2 + 10 * 72 * 2);
        assert_eq!(bytes(&lean, Category::MasterWeights), 4000);
        assert_eq!((lean.eval_peak, lean.fits), (0, None));
        assert!(lean.to_string().contains("unknown"));
    }

    #[test]
    fn a_frozen_base_costs_its_weights_alone() {
        let model = ModelShape { trainable_params: 10, ..small() };
        let train = TrainShape { micro_batch_tokens: 10, longest_document: 5, kept_blocks: 4 };
        let lora = plan(&model, &train, None, None);
        assert_eq!(bytes(&lora, Category::Gradients), 40);
        assert_eq!(lora.resident, 4000 + 80);
    }
}
