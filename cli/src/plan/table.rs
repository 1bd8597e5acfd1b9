//! Which batch fits into how much of a device.

use std::fmt;

use chandler_trainer::TrainSettings;
use chandler_vram::{Bytes, Category, CategoryBytes, Choice, Line, Plan, Shortage, Snapshot};
use serde::Serialize;

use crate::engine::Planning;

/// Shares of a device, and what they are called.
const PRESETS: [(&str, u64); 4] =
    [("conservative", 60), ("balanced", 75), ("aggressive", 90), ("maximum", 100)];

/// Of a machine's product peak, what a training step reaches.
const UTILISATION: f64 = 0.7;

/// Rows of a micro-batch beyond which nobody asks.
const MOST_ROWS: u64 = 4096;

/// The largest micro-batch for each share of the device, and the first that does not fit.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    /// Bytes that there are; without them there are no rows.
    pub(crate) device: Option<u64>,
    pub(crate) rows: Vec<Row>,
    pub(crate) beyond: Option<Beyond>,
}

/// One share.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) preset: &'static str,
    /// Per cent of the device.
    pub(crate) share: u64,
    /// Bytes of it.
    pub(crate) budget: u64,
    /// `None` where not even one row fits.
    pub(crate) best: Option<Best>,
}

/// What fits.
#[derive(Debug, Serialize)]
pub(crate) struct Best {
    pub(crate) choice: Choice,
    pub(crate) effective_batch: u64,
    pub(crate) train_peak: u64,
    /// Bytes of the share that stay free.
    pub(crate) headroom: u64,
    pub(crate) eval_peak: u64,
    /// An estimate from this machine's product peak.
    pub(crate) tokens_per_s: Option<f64>,
}

/// The first micro-batch that does not fit into the device.
#[derive(Debug, Serialize)]
pub(crate) struct Beyond {
    pub(crate) micro_batch_rows: u64,
    pub(crate) train_peak: u64,
    pub(crate) lacking: u64,
    /// What takes the most.
    pub(crate) mostly: Category,
    pub(crate) mostly_bytes: u64,
}

impl Table {
    /// `speed` is the tokens a second of a machine at its product peak.
    pub(crate) fn of(planning: &Planning, settings: &TrainSettings, speed: Option<f64>) -> Self {
        let Some(device) = planning.budget else {
            return Self { device: None, rows: vec![], beyond: None };
        };
        let finder = Finder { planning, settings, whole: planning.whole(settings), speed };
        let row = |(preset, share): (&'static str, u64)| {
            let budget = device / 100 * share;
            Row { preset, share, budget, best: finder.best(budget) }
        };
        let beyond = finder.beyond(device);
        Self { device: Some(device), rows: PRESETS.into_iter().map(row).collect(), beyond }
    }
}

struct Finder<'a> {
    planning: &'a Planning<'a>,
    settings: &'a TrainSettings,
    whole: Choice,
    speed: Option<f64>,
}

impl Finder<'_> {
    fn plan(&self, rows: u64, kept_blocks: u64) -> Plan {
        let global = self.whole.micro_batch_rows * self.whole.micro_batches;
        let micro_batches = global.div_ceil(rows).max(1);
        let choice = Choice { kept_blocks, micro_batch_rows: rows, micro_batches };
        self.planning.plan(self.settings, &choice)
    }

    /// The most rows whose blocks all keep their activations; where one row does not fit so, the
    /// most kept blocks of one.
    fn best(&self, budget: u64) -> Option<Best> {
        let all = self.whole.kept_blocks;
        let fits = |rows: u64, kept: u64| self.plan(rows, kept).train_peak <= budget;
        let (rows, kept_blocks) = match most(MOST_ROWS, |rows| fits(rows, all)) {
            Some(rows) => (rows, all),
            None => (1, (0..=all).rev().find(|kept| fits(1, *kept))?),
        };
        let global = self.whole.micro_batch_rows * self.whole.micro_batches;
        let micro_batches = global.div_ceil(rows).max(1);
        let plan = self.plan(rows, kept_blocks);
        let blocks = self.planning.model.num_blocks().max(1) as f64;
        // A block that is computed again costs its forward pass, a third of the rest.
        let again = 1.0 + (blocks - kept_blocks as f64) / blocks / 3.0;
        Some(Best {
            choice: Choice { kept_blocks, micro_batch_rows: rows, micro_batches },
            effective_batch: rows * micro_batches,
            train_peak: plan.train_peak,
            headroom: budget - plan.train_peak,
            eval_peak: plan.eval_peak,
            tokens_per_s: self.speed.map(|speed| speed * UTILISATION / again),
        })
    }

    fn beyond(&self, device: u64) -> Option<Beyond> {
        let all = self.whole.kept_blocks;
        let rows = most(MOST_ROWS, |rows| self.plan(rows, all).train_peak <= device);
        let plan = self.plan(rows.unwrap_or(0) + 1, all);
        let lacking = plan.train_peak.checked_sub(device).filter(|bytes| *bytes > 0)?;
        let most = largest(&plan)?;
        Some(Beyond {
            micro_batch_rows: rows.unwrap_or(0) + 1,
            train_peak: plan.train_peak,
            lacking,
            mostly: most.category,
            mostly_bytes: most.bytes,
        })
    }
}

/// The largest number from 1 to `limit` that fits, where all smaller ones do too.
fn most(limit: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
    if !fits(1) {
        return None;
    }
    let (mut good, mut bad) = (1, 2);
    while bad <= limit && fits(bad) {
        (good, bad) = (bad, bad * 2);
    }
    if bad > limit {
        return Some(good);
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    Some(good)
}

fn largest(plan: &Plan) -> Option<&Line> {
    plan.lines.iter().filter(|line| line.phase != "eval").max_by_key(|line| line.bytes)
}

/// Why a plan does not fit beside what others hold, in a sentence.
pub(crate) fn why_not(plan: &Plan, device: u64, others: u64) -> String {
    let phase = if plan.eval_peak > plan.train_peak { "eval" } else { "train" };
    let held = |line: &&Line| (line.phase == phase || line.phase == "always") && line.bytes > 0;
    let lines = plan.lines.iter().filter(held);
    let own = |line: &Line| CategoryBytes {
        category: line.category,
        bytes: line.bytes,
        peak: line.bytes,
    };
    let budget = device.saturating_sub(others);
    let shortage = Shortage {
        wanted: Some(plan.peak.saturating_sub(budget)),
        total: Some(device),
        free: Some(0),
        own: Snapshot {
            categories: lines.map(own).collect(),
            total: plan.peak,
            ..Snapshot::default()
        },
        others: vec![("everybody else".to_owned(), Some(others))],
    };
    shortage.to_string()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.device.is_none() {
            return writeln!(f, "what fits is not known: name a device with --device");
        }
        writeln!(
            f,
            "  {:<13}{:>6}  {:>12}{:>14}{:>11}{:>6}{:>14}{:>12}{:>14}{:>10}",
            "",
            "share",
            "of",
            "batch",
            "effective",
            "kept",
            "training",
            "headroom",
            "eval",
            "tokens/s"
        )?;
        for row in &self.rows {
            let size = |bytes: u64| Bytes(bytes).to_string();
            write!(f, "  {:<13}{:>4} %  {:>12}", row.preset, row.share, size(row.budget))?;
            match &row.best {
                None => writeln!(f, "  not even one row fits")?,
                Some(best) => {
                    let Choice { kept_blocks, micro_batch_rows, micro_batches } = best.choice;
                    let batch = format!("{micro_batch_rows} x {micro_batches}");
                    let speed = best
                        .tokens_per_s
                        .map_or("unknown".to_owned(), |speed| format!("~{speed:.0}"));
                    writeln!(
                        f,
                        "{batch:>14}{:>11}{kept_blocks:>6}{:>14}{:>12}{:>14}{speed:>10}",
                        best.effective_batch,
                        size(best.train_peak),
                        size(best.headroom),
                        size(best.eval_peak),
                    )?;
                }
            }
        }
        match &self.beyond {
            None => writeln!(f, "  {MOST_ROWS} rows fit too"),
            Some(beyond) => writeln!(
                f,
                "  a batch of {} that keeps all activations does not fit: training takes {}, {} more than \
                 there are; {} of it for {}",
                beyond.micro_batch_rows,
                Bytes(beyond.train_peak),
                Bytes(beyond.lacking),
                Bytes(beyond.mostly_bytes),
                beyond.mostly,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found() {
        for limit in 0..70 {
            let expected = (limit > 0).then_some(limit);
            assert_eq!(most(MOST_ROWS, |rows| rows <= limit), expected);
        }
        assert_eq!(most(64, |_| true), Some(64));
    }
}
