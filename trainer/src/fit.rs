//! How much of a step is in memory at a time: what running out of it has taught.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Limits on a micro-batch beside those of the settings. They change how a global batch is cut,
/// not what it adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fit {
    /// Rows that go through the model together, at most; `None` does not limit them.
    pub rows: Option<usize>,
    /// Blocks whose activations are kept, at most; `None` does not limit them.
    pub kept_blocks: Option<usize>,
}

impl Fit {
    /// Within both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let least = |a: Option<usize>, b: Option<usize>| [a, b].into_iter().flatten().min();
        Self {
            rows: least(self.rows, other.rows),
            kept_blocks: least(self.kept_blocks, other.kept_blocks),
        }
    }

    /// Rows of a micro-batch that the settings want to have `rows`.
    pub(crate) fn rows_of(self, rows: usize) -> usize {
        self.rows.map_or(rows, |most| most.min(rows)).max(1)
    }

    /// Kept blocks where the settings want to keep `blocks`.
    pub(crate) fn kept_of(self, blocks: usize) -> usize {
        self.kept_blocks.map_or(blocks, |most| most.min(blocks))
    }

    /// The fit of a run that goes on from a checkpoint: rows as they were, since they decide how
    /// sums are rounded, and no more kept blocks than are known to fit.
    pub(crate) fn resumed(self, known: Self) -> Self {
        Self { rows: self.rows, ..self.and(known) }
    }

    /// Half of the rows, or of the kept blocks once there is one row; `None` where nothing is left
    /// to halve. `rows` and `blocks` are what did not fit; rows are only halved where a batch may
    /// be `cut`.
    pub(crate) fn tighter(self, rows: usize, blocks: usize, cut: bool) -> Option<Self> {
        if cut && rows > 1 {
            return Some(Self { rows: Some(rows.div_ceil(2)), ..self });
        }
        (blocks > 0).then_some(Self { kept_blocks: Some(blocks / 2), ..self })
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.rows {
            Some(rows) => write!(f, "at most {rows} rows go through the model together")?,
            None => write!(f, "micro-batches stay whole")?,
        }
        match self.kept_blocks {
            Some(blocks) => write!(f, " and {blocks} blocks keep their activations"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_halved_before_blocks_and_both_end() {
        let (mut fit, mut seen) = (Fit::default(), vec![]);
        while let Some(next) = fit.tighter(fit.rows_of(5), fit.kept_of(3), true) {
            fit = next;
            seen.push((fit.rows_of(5), fit.kept_of(3)));
        }
        assert_eq!(seen, [(3, 3), (2, 3), (1, 3), (1, 1), (1, 0)]);
        // A run that goes on keeps its rows, which decide how sums are rounded, and the fewer blocks.
        let fit = |rows, kept_blocks| Fit { rows, kept_blocks };
        assert_eq!(fit(None, None).resumed(fit(Some(1), Some(2))), fit(None, Some(2)));
        assert_eq!(fit(Some(1), Some(1)).resumed(fit(None, Some(2))), fit(Some(1), Some(1)));
        let whole = Fit::default().tighter(5, 3, false);
        assert_eq!(whole, Some(Fit { rows: None, kept_blocks: Some(1) }));
    }
}
