//! How long the records are.

use serde::{Deserialize, Serialize};

/// Lengths in tokens before anything is cut, and what became of the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthStats {
    /// Records that were read.
    pub records: u64,
    /// Records that were cut at `max_length`.
    pub cut: u64,
    /// Records left out because no token of theirs carried loss after the cut.
    pub untrained: u64,
    /// Lines left out because they could not be used.
    pub bad_lines: u64,
    /// Tokens that are kept.
    pub tokens: u64,
    /// Of those, how many carry loss.
    pub trained_tokens: u64,
    /// Half of the records are at most this long.
    pub p50: u32,
    /// Nine of ten.
    pub p90: u32,
    /// 95 of 100.
    pub p95: u32,
    /// 99 of 100.
    pub p99: u32,
    /// The longest.
    pub max: u32,
}

impl LengthStats {
    /// Fills in the percentiles (nearest rank) of these lengths.
    pub(crate) fn set_percentiles(&mut self, lengths: &mut [u32]) {
        lengths.sort_unstable();
        let rank = |share: f64| {
            let rank = (share * lengths.len() as f64).ceil() as usize;
            lengths.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        (self.p50, self.p90, self.p95) = (rank(0.50), rank(0.90), rank(0.95));
        (self.p99, self.max) = (rank(0.99), rank(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let mut stats = LengthStats::default();
        let mut lengths: Vec<u32> = (1..=200).rev().collect();
        stats.set_percentiles(&mut lengths);
        assert_eq!((stats.p50, stats.p90, stats.p99, stats.max), (100, 180, 198, 200));
        stats.set_percentiles(&mut []);
        assert_eq!(stats.max, 0);
    }
}
