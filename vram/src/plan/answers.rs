//! The moments of an evaluation, and which of them holds the most.

use super::block::Widths;
use super::{EvalShape, ModelShape};

/// Bytes that an evaluation holds beside what is always there and a cache of so many bytes. Rows are
/// scored while there is no cache.
pub(super) fn most(model: &ModelShape, eval: &EvalShape, cache: u64) -> u64 {
    let scoring = scoring(model, eval).saturating_sub(cache);
    eval.workspace + prefill(model, eval).max(decode(model, eval)).max(scoring)
}

/// Pieces of prompts through the blocks, one after the other; the output of each prompt's last token
/// waits for the logits.
fn prefill(model: &ModelShape, eval: &EvalShape) -> u64 {
    let b = model.element_bytes;
    let last = eval.batch * model.hidden * b;
    let pieces = (0..eval.prompt_tokens).step_by(eval.prefill_tokens.max(1) as usize);
    let in_blocks = pieces.map(|past| piece(model, eval, past)).max().unwrap_or(0);
    let ids = 4 * eval.batch * eval.prompt_tokens;
    // Apart, together, and after the norm.
    let at_logits = 3 * last + model.logit_bytes(eval.batch);
    if in_blocks == 0 { 0 } else { ids + at_logits.max(in_blocks) }
}

/// The piece of a prompt that begins behind so many tokens; of short prompts, as many as are a piece.
fn piece(model: &ModelShape, eval: &EvalShape, past: u64) -> u64 {
    let (prompt, most) = (eval.prompt_tokens, eval.prefill_tokens.max(1));
    let rows = (most / prompt).clamp(1, eval.batch.max(1));
    let tokens = rows * most.min(prompt - past);
    let keys = if past > 0 { past + tokens } else { 0 };
    let waiting = eval.batch.saturating_sub(rows) * model.hidden;
    let elements = waiting + Widths::of(model).prefill(tokens, keys, rows > 1);
    let passing = eval.passing.attention_forward;
    elements * model.element_bytes + tokens * (model.angle_bytes() + 8) + passing
}

/// New logits beside those of the token before, which are chosen from.
fn decode(model: &ModelShape, eval: &EvalShape) -> u64 {
    let before = 4 * eval.batch * model.vocab;
    let hidden = 2 * eval.batch * model.hidden * model.element_bytes;
    let logits = model.logit_bytes(eval.batch);
    if eval.batch == 0 { 0 } else { before + hidden + logits + recorded(model, eval) }
}

/// What the recorded step of a GPU has for itself as long as there is a cache: what its blocks and
/// attention take while they work, what it is given and what comes out. On the CPU no step is recorded,
/// and its attention to a cache passes nothing.
fn recorded(model: &ModelShape, eval: &EvalShape) -> u64 {
    let given = eval.batch * (2 * model.hidden * model.element_bytes + model.angle_bytes() + 8);
    let in_blocks = Widths::of(model).prefill(eval.batch, 0, false) * model.element_bytes;
    let passing = eval.passing.decode;
    if passing == 0 { 0 } else { given + in_blocks + passing }
}

/// The forward pass over a row whose loss is measured, and the loss.
fn scoring(model: &ModelShape, eval: &EvalShape) -> u64 {
    let tokens =
        |width: u64| eval.scored_tokens * (width * model.element_bytes + model.angle_bytes() + 40);
    let in_blocks = tokens(Widths::of(model).forward()) + eval.passing.attention_forward;
    let at_loss = tokens(2 * model.hidden) + eval.passing.loss;
    if eval.scored_tokens == 0 { 0 } else { in_blocks.max(at_loss) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::super::{EvalShape, Passing};
    use super::most;

    /// Answers to two short prompts, by tokens of which each passes so much.
    fn answers(decode: u64) -> u64 {
        let eval = EvalShape {
            batch: 2,
            tokens: 30,
            prompt_tokens: 1,
            prefill_tokens: 1,
            scored_tokens: 0,
            workspace: 0,
            passing: Passing { decode, ..Passing::NONE },
        };
        most(&small(), &eval, 0)
    }

    #[test]
    fn a_recorded_step_stays_beside_the_logits() {
        let (on_cpu, on_gpu, more) = (answers(0), answers(500), answers(700));
        assert_eq!(more - on_gpu, 200);
        assert!(on_gpu > on_cpu + 500, "{on_gpu} and {on_cpu}");
    }
}
