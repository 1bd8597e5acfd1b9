//! The moments of an evaluation, and which of them holds the most.

use super::block::Widths;
use super::{EvalShape, ModelShape};

/// Bytes that an evaluation holds beside what is always there and the cache.
pub(super) fn most(model: &ModelShape, eval: &EvalShape) -> u64 {
    eval.workspace + prefill(model, eval).max(decode(model, eval)).max(scoring(model, eval))
}

/// Pieces of prompts through the blocks. The outputs of earlier pieces wait for the logits.
fn prefill(model: &ModelShape, eval: &EvalShape) -> u64 {
    let (b, prompt) = (model.element_bytes, eval.prompt_tokens);
    let most = eval.prefill_tokens.max(1);
    let (tokens, rows) = if prompt == 0 || prompt >= most {
        (prompt.min(most), 1)
    } else {
        let rows = (most / prompt).min(eval.batch);
        (rows * prompt, rows)
    };
    if tokens == 0 {
        return 0;
    }
    // Keys of the prompt's earlier pieces, for each token of the last one.
    let past = if prompt > most { prompt.div_ceil(tokens) } else { 0 };
    let width = Widths::of(model).prefill(past, rows > 1);
    let waiting = eval.batch.saturating_sub(rows) * prompt.min(most) * model.hidden * b;
    let ids = 4 * eval.batch * prompt + 8 * tokens;
    let in_blocks = waiting + tokens * (width * b + model.angle_bytes()) + ids;
    let outputs = eval.batch * prompt.min(most) * model.hidden * b;
    in_blocks.max(outputs + 2 * eval.batch * model.hidden * b + model.logit_bytes(eval.batch) + ids)
}

/// New logits beside those of the token before, which are chosen from.
fn decode(model: &ModelShape, eval: &EvalShape) -> u64 {
    let before = 4 * eval.batch * model.vocab;
    let hidden = 2 * eval.batch * model.hidden * model.element_bytes;
    if eval.batch == 0 { 0 } else { before + hidden + model.logit_bytes(eval.batch) }
}

/// The forward pass over a row whose loss is measured.
fn scoring(model: &ModelShape, eval: &EvalShape) -> u64 {
    let token = Widths::of(model).forward() * model.element_bytes + model.angle_bytes() + 40;
    eval.scored_tokens * token
}
