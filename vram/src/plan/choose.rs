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

/// The way that computes the least again within `budget`, and the peak of it; without one that
/// fits, the way that needs the least.
///
/// As many blocks are kept as fit. Where not even a run without a kept block does, micro-batches of
/// fewer rows are tried, the largest first, as long as `whole` is divided evenly; `splits` says
/// whether that is allowed. `peak` is the plan's and grows with the kept blocks.
///
/// ```
/// use chandler_vram::{Choice, choose};
///
/// let whole = Choice { kept_blocks: 4, micro_batch_rows: 8, micro_batches: 1 };
/// let mut peak = |choice: &Choice| 100 + choice.micro_batch_rows * (10 + choice.kept_blocks);
/// assert_eq!(choose(whole, true, 200, &mut peak).map(|(choice, _)| choice.kept_blocks), Ok(2));
/// let split = Choice { kept_blocks: 4, micro_batch_rows: 2, micro_batches: 4 };
/// assert_eq!(choose(whole, true, 130, &mut peak), Ok((split, 128)));
/// let least = Choice { kept_blocks: 0, micro_batch_rows: 1, micro_batches: 8 };
/// assert_eq!(choose(whole, true, 50, &mut peak), Err((least, 110)));
/// ```
pub fn choose(
    whole: Choice,
    splits: bool,
    budget: u64,
    peak: &mut dyn FnMut(&Choice) -> u64,
) -> Result<(Choice, u64), (Choice, u64)> {
    let mut least: Option<(Choice, u64)> = None;
    let rows = whole.micro_batch_rows.max(1);
    let divisors = (1..=rows).rev().filter(|part| rows.is_multiple_of(*part));
    for part in divisors.take(if splits { usize::MAX } else { 1 }) {
        let way = |kept_blocks| Choice {
            kept_blocks,
            micro_batch_rows: part,
            micro_batches: whole.micro_batches * (rows / part),
        };
        let none_kept = peak(&way(0));
        if none_kept <= budget {
            let kept = most_that_fits(whole.kept_blocks, |kept| peak(&way(kept)) <= budget);
            let choice = way(kept);
            return Ok((choice, peak(&choice)));
        }
        if least.is_none_or(|(_, bytes)| none_kept < bytes) {
            least = Some((way(0), none_kept));
        }
    }
    Err(least.unwrap_or((whole, u64::MAX)))
}

/// The largest number up to `most` that `fits`, or 0.
pub fn most_that_fits(most: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
    (1..=most).rev().find(|number| fits(*number)).unwrap_or(0)
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
            let mut peak = |c: &Choice| 20 + c.micro_batch_rows * (4 + 3 * c.kept_blocks);
            match choose(whole(), true, budget, &mut peak) {
                Ok((choice, bytes)) => {
                    assert_eq!(choice.micro_batch_rows * choice.micro_batches, 12);
                    assert_eq!(bytes, peak(&choice));
                    assert!(bytes <= budget);
                    let more = Choice { kept_blocks: choice.kept_blocks + 1, ..choice };
                    assert!(choice.kept_blocks == 6 || peak(&more) > budget);
                }
                Err((least, bytes)) => {
                    assert_eq!((least.micro_batch_rows, least.kept_blocks, bytes), (1, 0, 24));
                    assert!(budget < 24);
                }
            }
        }
    }

    #[test]
    fn what_may_not_be_split_is_not() {
        let mut peak = |c: &Choice| c.micro_batch_rows;
        let least = Choice { kept_blocks: 0, ..whole() };
        assert_eq!(choose(whole(), false, 5, &mut peak), Err((least, 6)));
    }
}
