//! Which of the ways to run a global batch fits into a budget.

use serde::Serialize;

/// One way to run a global batch. The gradients are the same whichever it is, and with the same
/// micro-batches their bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Blocks whose activations are kept.
    pub kept_blocks: u64,
    /// Rows of a micro-batch.
    pub micro_batch_rows: u64,
    /// Micro-batches of a step.
    pub micro_batches: u64,
}

/// What a pass over a micro-batch costs beside its tokens, in tokens: its products read the weights and
/// add to their gradients whatever they multiply.
const TOKENS_OF_MICRO_BATCH: f64 = 256.0;

/// What a pass that computes all blocks again takes longer: a sixth on a CPU (a Qwen 3 of 8 blocks, rows of 2048
/// tokens), about a fifth by the arithmetic of larger models.
const AGAIN: f64 = 0.2;

/// The way that takes the least time within `budget`, and the peak of it; without one that fits, the
/// way that needs the least memory.
///
/// Micro-batches of fewer rows leave room for more kept blocks, and computing less again is worth more
/// than the weights are read for, unless micro-batches have few tokens. They are tried as long as `whole`
/// is divided evenly; `row_tokens` are the tokens of a row, or none where micro-batches may not be cut.
/// `peak` is the plan's and grows with the kept blocks.
///
/// ```
/// use chandler_vram::{Choice, choose};
///
/// let whole = Choice { kept_blocks: 4, micro_batch_rows: 8, micro_batches: 1 };
/// let mut peak = |choice: &Choice| 100 + choice.micro_batch_rows * (10 + choice.kept_blocks);
/// // Short rows stay together.
/// let two_kept = Choice { kept_blocks: 2, ..whole };
/// assert_eq!(choose(whole, Some(40), 200, &mut peak), Ok((two_kept, 196)));
/// // Long ones do not have to.
/// let split = Choice { micro_batch_rows: 4, micro_batches: 2, ..whole };
/// assert_eq!(choose(whole, Some(4096), 200, &mut peak), Ok((split, 156)));
/// assert_eq!(choose(whole, None, 200, &mut peak), Ok((two_kept, 196)));
/// let least = Choice { kept_blocks: 0, micro_batch_rows: 1, micro_batches: 8 };
/// assert_eq!(choose(whole, Some(40), 50, &mut peak), Err((least, 110)));
/// ```
pub fn choose(
    whole: Choice,
    row_tokens: Option<u64>,
    budget: u64,
    peak: &mut dyn FnMut(&Choice) -> u64,
) -> Result<(Choice, u64), (Choice, u64)> {
    let mut best: Option<(f64, Choice)> = None;
    let mut least: Option<(Choice, u64)> = None;
    let rows = whole.micro_batch_rows.max(1);
    let divisors = (1..=rows).rev().filter(|part| rows.is_multiple_of(*part));
    for part in divisors.take(if row_tokens.is_some() { usize::MAX } else { 1 }) {
        let way = |kept_blocks| Choice {
            kept_blocks,
            micro_batch_rows: part,
            micro_batches: whole.micro_batches * (rows / part),
        };
        let none_kept = peak(&way(0));
        if none_kept <= budget {
            let choice = way(most_that_fits(whole.kept_blocks, |kept| peak(&way(kept)) <= budget));
            let cost = cost(&choice, &whole, row_tokens.unwrap_or(0));
            if best.is_none_or(|(lowest, _)| cost < lowest) {
                best = Some((cost, choice));
            }
            // Still fewer rows are still more micro-batches.
            if choice.kept_blocks == whole.kept_blocks {
                break;
            }
        }
        if least.is_none_or(|(_, bytes)| none_kept < bytes) {
            least = Some((way(0), none_kept));
        }
    }
    match best {
        Some((_, choice)) => Ok((choice, peak(&choice))),
        None => Err(least.unwrap_or((whole, u64::MAX))),
    }
}

/// How long a step takes, in tokens of a pass that computes nothing again.
fn cost(choice: &Choice, whole: &Choice, row_tokens: u64) -> f64 {
    let again = (whole.kept_blocks - choice.kept_blocks) as f64 / whole.kept_blocks.max(1) as f64;
    let tokens = (choice.micro_batch_rows * row_tokens) as f64;
    choice.micro_batches as f64 * (tokens * (1.0 + AGAIN * again) + TOKENS_OF_MICRO_BATCH)
}

/// The largest number up to `most` that `fits`, or 0; what fits, fits with any smaller number.
pub fn most_that_fits(most: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
    let (mut fitting, mut beyond) = (0, most + 1);
    while beyond - fitting > 1 {
        // All of it is what fits the most often.
        let middle = if beyond > most { most } else { fitting + (beyond - fitting) / 2 };
        if fits(middle) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Choice {
        Choice { kept_blocks: 6, micro_batch_rows: 6, micro_batches: 2 }
    }

    #[test]
    fn the_global_batch_stays_the_same() {
        for budget in 0..200 {
            for row_tokens in [None, Some(1), Some(300), Some(5000)] {
                let mut peak = |c: &Choice| 20 + c.micro_batch_rows * (4 + 3 * c.kept_blocks);
                match choose(whole(), row_tokens, budget, &mut peak) {
                    Ok((choice, bytes)) => {
                        assert_eq!(choice.micro_batch_rows * choice.micro_batches, 12);
                        assert_eq!(bytes, peak(&choice));
                        assert!(bytes <= budget);
                        let more = Choice { kept_blocks: choice.kept_blocks + 1, ..choice };
                        assert!(choice.kept_blocks == 6 || peak(&more) > budget);
                    }
                    Err((least, bytes)) => {
                        let rows = if row_tokens.is_some() { 1 } else { 6 };
                        assert_eq!((least.micro_batch_rows, least.kept_blocks), (rows, 0));
                        assert_eq!(bytes, peak(&least));
                        assert!(budget < bytes);
                    }
                }
            }
        }
    }

    /// Of all ways that fit, none costs less.
    #[test]
    fn no_way_that_fits_is_cheaper() {
        for budget in 24..200 {
            for row_tokens in [20, 300, 2000] {
                let mut peak = |c: &Choice| 20 + c.micro_batch_rows * (4 + 3 * c.kept_blocks);
                let (choice, _) = choose(whole(), Some(row_tokens), budget, &mut peak).unwrap();
                let found = cost(&choice, &whole(), row_tokens);
                for (part, kept) in
                    [1, 2, 3, 6].into_iter().flat_map(|p| (0..=6).map(move |k| (p, k)))
                {
                    let other = Choice {
                        kept_blocks: kept,
                        micro_batch_rows: part,
                        micro_batches: 12 / part,
                    };
                    let is_cheaper = cost(&other, &whole(), row_tokens) < found;
                    assert!(peak(&other) > budget || !is_cheaper, "{choice:?} and {other:?}");
                }
            }
        }
    }

    #[test]
    fn the_most_that_fits_is_found() {
        for most in 0..20 {
            for limit in 0..25 {
                assert_eq!(most_that_fits(most, |number| number <= limit), most.min(limit));
            }
        }
    }

    #[test]
    fn what_may_not_be_split_is_not() {
        let mut peak = |c: &Choice| c.micro_batch_rows;
        let least = Choice { kept_blocks: 0, ..whole() };
        assert_eq!(choose(whole(), None, 5, &mut peak), Err((least, 6)));
    }
}
