//! Which runs are exported.

use super::ExportError;
use crate::store::{RunSummary, Store};

/// A choice of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Every run.
    All,
    /// One run.
    Run(i64),
    /// Every attempt at a job.
    Job(i64),
}

impl Selection {
    /// The runs, oldest first.
    pub fn runs(self, store: &Store) -> Result<Vec<RunSummary>, ExportError> {
        let (before, limit, job) = match self {
            Self::All => (i64::MAX, i64::MAX as usize, None),
            Self::Job(id) => (i64::MAX, i64::MAX as usize, Some(store.job(id)?.id)),
            Self::Run(id) => (id.saturating_add(1), 1, None),
        };
        let mut runs = store.run_summaries(before, limit, job)?;
        if let Self::Run(id) = self
            && runs.first().is_none_or(|run| run.id != id)
        {
            return Err(ExportError::NoSuchRun { id });
        }
        runs.reverse();
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn runs_are_chosen_oldest_first_and_none_is_made_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let first = store.begin_run(None, 1, &Config::default()).unwrap();
        let second = store.begin_run(None, 2, &Config::default()).unwrap();
        let ids = |selection: Selection| -> Vec<i64> {
            selection.runs(&store).unwrap().iter().map(|run| run.id).collect()
        };
        assert_eq!(ids(Selection::All), [first, second]);
        assert_eq!(ids(Selection::Run(first)), [first]);
        for stranger in [0, second + 1, i64::MAX] {
            let error = Selection::Run(stranger).runs(&store).unwrap_err();
            assert!(matches!(error, ExportError::NoSuchRun { id } if id == stranger), "{error}");
            assert!(error.hint().is_some());
        }
        let error = Selection::Job(9).runs(&store).unwrap_err();
        assert!(matches!(error, ExportError::Store(_)), "{error}");
    }
}
