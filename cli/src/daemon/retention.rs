//! Which checkpoints and snapshots stay: the last N, the best by an evaluation's figure, one a day.

use std::collections::BTreeSet;
use std::path::PathBuf;

use chandler_evaluator::Better;
use jiff::civil::Date;

/// A checkpoint, as far as its fate depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointFacts {
    /// Its folder.
    pub path: PathBuf,
    /// The step it was made after; within a state directory steps only grow.
    pub step: u64,
    /// What says how good it is, where it was measured at that step.
    pub figure: Option<f64>,
}

/// The checkpoints that go: all but the newest `keep_last` and the `keep_best` best by their
/// figures. The newest always stays.
pub fn checkpoints_to_remove(
    checkpoints: &[CheckpointFacts],
    keep_last: usize,
    keep_best: usize,
    better: Better,
) -> Vec<PathBuf> {
    let mut by_age: Vec<&CheckpointFacts> = checkpoints.iter().collect();
    by_age.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.step));
    let valued = |checkpoint: &&CheckpointFacts| checkpoint.figure.is_some_and(|f| !f.is_nan());
    let mut by_figure: Vec<&CheckpointFacts> = by_age.iter().copied().filter(valued).collect();
    // A stable sort: of equal ones the newer is the better.
    let figure = |checkpoint: &CheckpointFacts| checkpoint.figure.unwrap_or(f64::NAN);
    by_figure.sort_by(|left, right| better.compare(figure(right), figure(left)));
    let kept: BTreeSet<&PathBuf> = by_age
        .iter()
        .take(keep_last.max(1))
        .map(|checkpoint| &checkpoint.path)
        .chain(by_figure.iter().take(keep_best).map(|checkpoint| &checkpoint.path))
        .collect();
    by_age
        .iter()
        .filter(|checkpoint| !kept.contains(&checkpoint.path))
        .map(|checkpoint| checkpoint.path.clone())
        .collect()
}

/// What is to be done about snapshots after a finished job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotChores {
    /// The folder name of today's snapshot, if it has to be made (or made anew).
    pub make: Option<String>,
    /// Folder names of snapshots that go.
    pub remove: Vec<String>,
}

/// One snapshot a day, of the newest model of that day, and the newest `keep` of them. Names that
/// are no dates are left alone.
pub fn snapshot_chores(existing: &[String], today: Date, keep: usize) -> SnapshotChores {
    let make = (keep > 0).then(|| today.to_string());
    let mut dates: BTreeSet<Date> =
        existing.iter().filter_map(|name| name.parse::<Date>().ok()).collect();
    let had: Vec<Date> = dates.iter().copied().collect();
    if keep > 0 {
        dates.insert(today);
    }
    // What a clock that was ahead has dated keeps no place from what is newer than it.
    let (past, ahead): (Vec<Date>, Vec<Date>) = dates.into_iter().partition(|date| *date <= today);
    let newest = past.into_iter().rev().chain(ahead.into_iter().rev());
    let kept: BTreeSet<Date> = newest.take(keep).collect();
    let remove = had.iter().filter(|date| !kept.contains(date)).map(Date::to_string).collect();
    SnapshotChores { make, remove }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(step: u64, figure: Option<f64>) -> CheckpointFacts {
        CheckpointFacts { path: PathBuf::from(format!("step-{step}")), step, figure }
    }

    fn removed(checkpoints: &[CheckpointFacts], last: usize, best: usize) -> Vec<String> {
        checkpoints_to_remove(checkpoints, last, best, Better::Lower)
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        let all = [
            facts(10, Some(0.5)),
            facts(20, Some(0.1)),
            facts(30, None),
            facts(40, Some(0.3)),
            facts(50, Some(f64::NAN)),
        ];
        assert_eq!(removed(&all, 2, 1), ["step-30", "step-10"]);
        assert_eq!(removed(&all, 1, 2), ["step-30", "step-10"]);
        assert_eq!(removed(&all, 0, 0), ["step-40", "step-30", "step-20", "step-10"]);
        assert!(removed(&all, 5, 0).is_empty());
        let higher = checkpoints_to_remove(&all, 1, 1, Better::Higher);
        assert!(!higher.contains(&PathBuf::from("step-10")), "{higher:?}");
    }

    #[test]
    fn of_equal_losses_the_newer_is_better() {
        let all = [facts(1, Some(0.5)), facts(2, Some(0.5)), facts(3, None)];
        assert_eq!(removed(&all, 1, 1), ["step-1"]);
    }

    #[test]
    fn a_snapshot_a_day() {
        let existing = ["2026-01-01", "2026-01-02", "notes", "2026-01-03"].map(str::to_owned);
        let today = jiff::civil::date(2026, 1, 3);
        assert_eq!(
            snapshot_chores(&existing, today, 2),
            SnapshotChores { make: Some("2026-01-03".into()), remove: vec!["2026-01-01".into()] }
        );
        let chores = snapshot_chores(&existing, jiff::civil::date(2026, 1, 4), 1);
        assert_eq!(chores.remove, ["2026-01-01", "2026-01-02", "2026-01-03"]);
        assert_eq!(snapshot_chores(&existing, today, 0).make, None);
        // The clock was ahead on the third, and is set right on the second.
        let set_back = snapshot_chores(&existing, jiff::civil::date(2026, 1, 2), 2);
        assert_eq!(set_back.remove, ["2026-01-03"]);
    }
}
