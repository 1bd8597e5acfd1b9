//! The tables that can be exported, and where their rows come from.

use chandler_vram::Category;

use super::table::{Cell, Column, Kind};
use super::{ExportError, Selection};
use crate::store::{EvalRow, EvalSample, Event, RunSummary, StepRow, Store};

/// Rows that are read from the database at a time.
const ROWS_AT_ONCE: usize = 4096;

/// What a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A row for each optimizer step.
    Metrics,
    /// A row for each evaluation.
    Evals,
    /// A row for each generated answer.
    Samples,
    /// A row for each event.
    Events,
}

/// Whoever takes rows.
pub(super) type Take<'a> = &'a mut dyn FnMut(Vec<Cell>) -> Result<(), ExportError>;

impl Subject {
    /// Its columns, in their order.
    pub(super) fn columns(self) -> Vec<Column> {
        use Kind::{Bool, Float, Int, Text};
        let fixed: &[(&str, Kind)] = match self {
            Self::Metrics => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("loss", Float),
                ("grad_norm", Float),
                ("lr", Float),
                ("num_tokens", Int),
                ("mean_token_accuracy", Float),
                ("tokens_per_s", Float),
                ("peak_bytes", Int),
            ],
            Self::Evals => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("loss", Float),
                ("perplexity", Float),
                ("token_accuracy", Float),
                ("exact_match", Float),
            ],
            Self::Samples => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("position", Int),
                ("prompt", Text),
                ("reference", Text),
                ("text", Text),
                ("new_tokens", Int),
                ("exact_match", Bool),
            ],
            Self::Events => &[
                ("id", Int),
                ("at", Text),
                ("job_id", Int),
                ("run_id", Int),
                ("kind", Text),
                ("message", Text),
                ("details", Text),
            ],
        };
        let column = |(name, kind): &(&str, Kind)| Column { name: (*name).to_owned(), kind: *kind };
        let memory = Category::ALL
            .into_iter()
            .filter(|_| self == Self::Metrics)
            .map(|category| Column { name: format!("memory_{category}_bytes"), kind: Int });
        fixed.iter().map(column).chain(memory).collect()
    }

    /// Hands every row to `take`, in the order of runs and steps.
    pub(super) fn read(
        self,
        store: &Store,
        selection: Selection,
        take: Take<'_>,
    ) -> Result<(), ExportError> {
        if self == Self::Events {
            return events(store, selection, take);
        }
        for run in selection.runs(store)? {
            match self {
                Self::Metrics => steps(store, &run, take)?,
                Self::Evals => {
                    store.evals(run.id)?.iter().try_for_each(|row| take(eval(&run, row)))?;
                }
                _ => samples(store, &run, take)?,
            }
        }
        Ok(())
    }
}

fn steps(store: &Store, run: &RunSummary, take: Take<'_>) -> Result<(), ExportError> {
    let mut last = 0;
    loop {
        let rows = store.steps_after(run.id, last, ROWS_AT_ONCE)?;
        let Some(newest) = rows.last() else { return Ok(()) };
        last = newest.step;
        rows.iter().try_for_each(|row| take(step(run, row)))?;
    }
}

fn step(run: &RunSummary, row: &StepRow) -> Vec<Cell> {
    let mut cells = vec![
        run.id.into(),
        run.job_id.into(),
        row.step.into(),
        row.loss.into(),
        row.grad_norm.into(),
        row.lr.into(),
        row.num_tokens.into(),
        row.mean_token_accuracy.into(),
        row.tokens_per_s.into(),
        row.peak_bytes.into(),
    ];
    cells.extend(Category::ALL.map(|category| Cell::from(row.memory.get(&category).copied())));
    cells
}

fn eval(run: &RunSummary, row: &EvalRow) -> Vec<Cell> {
    vec![
        run.id.into(),
        run.job_id.into(),
        row.step.into(),
        row.loss.into(),
        row.perplexity.into(),
        row.token_accuracy.into(),
        row.exact_match.into(),
    ]
}

fn samples(store: &Store, run: &RunSummary, take: Take<'_>) -> Result<(), ExportError> {
    for eval in store.evals(run.id)? {
        for (position, row) in store.eval_samples(run.id, eval.step)?.into_iter().enumerate() {
            take(sample(run, eval.step, position, row))?;
        }
    }
    Ok(())
}

fn sample(run: &RunSummary, step: u64, position: usize, row: EvalSample) -> Vec<Cell> {
    vec![
        run.id.into(),
        run.job_id.into(),
        step.into(),
        (position as u64).into(),
        row.prompt.into(),
        row.reference.into(),
        row.text.into(),
        row.new_tokens.into(),
        row.exact_match.into(),
    ]
}

/// Events of a run, of a job, or all of them, those of the daemon itself included.
fn events(store: &Store, selection: Selection, take: Take<'_>) -> Result<(), ExportError> {
    // Refuses a run or a job that is not there.
    selection.runs(store)?;
    let wanted = |event: &Event| match selection {
        Selection::All => true,
        Selection::Run(id) => event.run_id == Some(id),
        Selection::Job(id) => event.job_id == Some(id),
    };
    let mut last = 0;
    loop {
        let events = store.events_after(last, ROWS_AT_ONCE)?;
        let Some(newest) = events.last() else { return Ok(()) };
        last = newest.id;
        for event in events.into_iter().filter(wanted) {
            take(vec![
                event.id.into(),
                event.at.into(),
                event.job_id.into(),
                event.run_id.into(),
                event.kind.into(),
                event.message.into(),
                event.details.map(|details| details.to_string()).into(),
            ])?;
        }
    }
}
