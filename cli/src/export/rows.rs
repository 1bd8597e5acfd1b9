//! The tables that can be exported, and where their rows come from.

use chandler_vram::Category;

use super::table::{Cell, Column, Kind};
use super::{ExportError, Selection};
use crate::store::{EvalRow, EvalSample, Event, RunSummary, ScoreRow, StepRow, Store};

/// Rows that are read from the database at a time.
const ROWS_AT_ONCE: usize = 4096;

/// What a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A row for each optimizer step.
    Metrics,
    /// A row for each layer in each step that looked at them.
    Layers,
    /// A row for each evaluation, with the figures of the job's own set.
    Evals,
    /// A row for each metric of each set in each evaluation.
    Scores,
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
            Self::Layers => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("layer", Text),
                ("grad_norm", Float),
                ("update_norm", Float),
                ("weight_norm", Float),
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
            Self::Scores => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("set", Text),
                ("metric", Text),
                ("value", Float),
                ("low", Float),
                ("high", Float),
                ("count", Int),
                ("gain", Float),
                ("gain_low", Float),
                ("gain_high", Float),
                ("asked", Text),
            ],
            Self::Samples => &[
                ("run_id", Int),
                ("job_id", Int),
                ("step", Int),
                ("set", Text),
                ("position", Int),
                ("attempt", Int),
                ("prompt", Text),
                ("reference", Text),
                ("text", Text),
                ("score", Float),
                ("exact_match", Bool),
                ("prompt_tokens", Int),
                ("new_tokens", Int),
                ("seconds", Float),
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
                Self::Metrics => steps(store, &run, &mut |row| take(step(&run, &row)))?,
                Self::Layers => steps(store, &run, &mut |row| layers(&run, row, take))?,
                Self::Evals => {
                    store.evals(run.id)?.iter().try_for_each(|row| take(eval(&run, row)))?;
                }
                Self::Scores => scores(store, &run, take)?,
                Self::Samples => samples(store, &run, take)?,
                Self::Events => {}
            }
        }
        Ok(())
    }
}

fn steps(
    store: &Store,
    run: &RunSummary,
    take: &mut dyn FnMut(StepRow) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let mut last = 0;
    loop {
        let rows = store.steps_with_layers(run.id, last, ROWS_AT_ONCE)?;
        let Some(newest) = rows.last() else { return Ok(()) };
        last = newest.step;
        rows.into_iter().try_for_each(&mut *take)?;
    }
}

fn layers(run: &RunSummary, row: StepRow, take: Take<'_>) -> Result<(), ExportError> {
    row.layers.into_iter().try_for_each(|one| {
        take(vec![
            run.id.into(),
            run.job_id.into(),
            row.step.into(),
            one.layer.into(),
            one.grad_norm.into(),
            one.update_norm.into(),
            one.weight_norm.into(),
        ])
    })
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

fn scores(store: &Store, run: &RunSummary, take: Take<'_>) -> Result<(), ExportError> {
    for eval in store.evals(run.id)? {
        eval.scores.into_iter().try_for_each(|row| take(score(run, eval.step, row)))?;
    }
    Ok(())
}

fn score(run: &RunSummary, step: u64, row: ScoreRow) -> Vec<Cell> {
    vec![
        run.id.into(),
        run.job_id.into(),
        step.into(),
        row.set.into(),
        row.metric.into(),
        row.value.into(),
        row.low.into(),
        row.high.into(),
        row.count.into(),
        row.gain.into(),
        row.gain_low.into(),
        row.gain_high.into(),
        row.asked.into(),
    ]
}

fn samples(store: &Store, run: &RunSummary, take: Take<'_>) -> Result<(), ExportError> {
    for eval in store.evals(run.id)? {
        let samples = store.eval_samples(run.id, eval.step)?;
        samples.into_iter().try_for_each(|row| take(sample(run, eval.step, row)))?;
    }
    Ok(())
}

fn sample(run: &RunSummary, step: u64, row: EvalSample) -> Vec<Cell> {
    vec![
        run.id.into(),
        run.job_id.into(),
        step.into(),
        row.set.into(),
        row.position.into(),
        row.attempt.into(),
        row.prompt.into(),
        row.reference.into(),
        row.text.into(),
        row.score.into(),
        row.exact_match.into(),
        row.prompt_tokens.into(),
        row.new_tokens.into(),
        row.seconds.into(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A row as text, by its columns.
    fn told(subject: Subject, store: &Store, wanted: &[&str]) -> Vec<String> {
        let columns = subject.columns();
        let mut rows = vec![];
        subject
            .read(store, Selection::All, &mut |cells| {
                assert_eq!(cells.len(), columns.len());
                let named = columns.iter().zip(cells);
                let kept = named.filter(|(column, _)| wanted.contains(&column.name.as_str()));
                let text = kept.map(|(_, cell)| match cell {
                    Cell::Unknown => "-".to_owned(),
                    Cell::Int(number) => number.to_string(),
                    Cell::Float(number) => number.to_string(),
                    Cell::Bool(yes) => yes.to_string(),
                    Cell::Text(text) => text,
                });
                rows.push(text.collect::<Vec<_>>().join(" "));
                Ok(())
            })
            .unwrap();
        rows
    }

    #[test]
    fn every_set_has_its_answers_and_its_scores() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        let answer = |set: &str, position, attempt, score| EvalSample {
            set: set.to_owned(),
            position,
            attempt,
            score,
            prompt_tokens: Some(7),
            seconds: Some(0.5),
            ..EvalSample::default()
        };
        let samples =
            [answer("a", 0, 0, None), answer("b", 4, 0, Some(1.0)), answer("b", 4, 1, Some(0.25))];
        let score = |set: &str, gain| ScoreRow {
            set: set.to_owned(),
            metric: "numeric".to_owned(),
            asked: "hash".to_owned(),
            value: 0.5,
            count: 2,
            gain,
            ..ScoreRow::default()
        };
        let scores = vec![score("a", None), score("b", Some(0.125))];
        let eval = EvalRow { step: 3, scores, ..EvalRow::default() };
        store.record_eval(run, &eval, &samples).unwrap();
        let wanted = ["step", "set", "position", "attempt", "score", "prompt_tokens", "seconds"];
        assert_eq!(
            told(Subject::Samples, &store, &wanted),
            ["3 a 0 0 - 7 0.5", "3 b 4 0 1 7 0.5", "3 b 4 1 0.25 7 0.5"],
        );
        let wanted = ["run_id", "step", "set", "metric", "value", "low", "count", "gain", "asked"];
        assert_eq!(
            told(Subject::Scores, &store, &wanted),
            [
                format!("{run} 3 a numeric 0.5 - 2 - hash"),
                format!("{run} 3 b numeric 0.5 - 2 0.125 hash")
            ],
        );
    }
}
