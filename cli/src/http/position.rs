//! How far a viewer of the stream has seen, as the id of each of its messages.
//!
//! A position is of the database, not of the connection or the process: who comes back with one goes
//! on from there, also after the daemon was started anew.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::json;

use crate::store::{Store, StoreError};

/// Rows that are read at a time.
const BATCH: usize = 256;

/// A viewer that is further behind gets no steps one by one, but reads the curve.
const MOST_BEHIND: u64 = 5000;

/// What was seen: steps and evaluations of a run, and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    run: i64,
    step: u64,
    /// The step of the last evaluation; -1 where there was none.
    eval: i64,
    event: i64,
}

impl Position {
    /// Whether it is of another database, which had come further than this one.
    pub(super) fn is_beyond(&self, newest: &Self) -> bool {
        self.event > newest.event || (self.run, self.step) > (newest.run, newest.step)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, step, eval, event } = self;
        write!(f, "{run}.{step}.{eval}.{event}")
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(());
        let position = Self {
            run: next()?.parse().map_err(drop)?,
            step: next()?.parse().map_err(drop)?,
            eval: next()?.parse().map_err(drop)?,
            event: next()?.parse().map_err(drop)?,
        };
        if parts.next().is_none() { Ok(position) } else { Err(()) }
    }
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// Where a viewer is who has seen it; none where it is not of the database.
    pub(super) id: Option<Position>,
    pub(super) kind: &'static str,
    pub(super) data: serde_json::Value,
}

impl Message {
    /// As server-sent events are written.
    pub(super) fn write_into(&self, text: &mut String) {
        if let Some(id) = self.id {
            *text += &format!("id: {id}\n");
        }
        *text += &format!("event: {}\ndata: {}\n\n", self.kind, self.data);
    }
}

/// A row of a run.
#[derive(Serialize)]
struct OfRun<T> {
    run_id: i64,
    #[serde(flatten)]
    row: T,
}

impl Position {
    /// Where nothing is left to be seen.
    pub(super) fn newest(store: &Store) -> Result<Self, StoreError> {
        let run = store.newest_run()?.unwrap_or(0);
        Ok(Self {
            run,
            step: store.last_step(run)?.unwrap_or(0),
            eval: store.last_eval_step(run)?.map_or(-1, |step| step as i64),
            event: store.recent_events(1)?.first().map_or(0, |event| event.id),
        })
    }

    /// What comes next, in bounds: who gets something asks again.
    pub(super) fn advance(&mut self, store: &Store) -> Result<Vec<Message>, StoreError> {
        let mut messages = Vec::new();
        self.advance_run(store, &mut messages)?;
        for event in store.events_after(self.event, BATCH)? {
            self.event = event.id;
            messages.push(self.message("event", json!(event)));
        }
        Ok(messages)
    }

    fn advance_run(
        &mut self,
        store: &Store,
        messages: &mut Vec<Message>,
    ) -> Result<(), StoreError> {
        let last = store.last_step(self.run)?.unwrap_or(0);
        if last > self.step.saturating_add(MOST_BEHIND) {
            let gap = json!({ "run_id": self.run, "from": self.step + 1, "to": last });
            self.step = last;
            messages.push(self.message("gap", gap));
        }
        let steps = store.steps_with_layers(self.run, self.step, BATCH)?;
        let was_all = steps.len() < BATCH;
        for row in steps {
            self.step = row.step;
            messages.push(self.message("step", json!(OfRun { run_id: self.run, row })));
        }
        let newest = store.last_eval_step(self.run)?.map_or(-1, |step| step as i64);
        let evals = if newest > self.eval { store.evals(self.run)? } else { vec![] };
        for row in evals {
            if row.step as i64 > self.eval {
                self.eval = row.step as i64;
                messages.push(self.message("eval", json!(OfRun { run_id: self.run, row })));
            }
        }
        if was_all && let Some(next) = store.run_after(self.run)? {
            *self = Self { run: next, step: 0, eval: -1, ..*self };
            messages.push(self.message("run", json!({ "run_id": next })));
        }
        Ok(())
    }

    fn message(&self, kind: &'static str, data: serde_json::Value) -> Message {
        Message { id: Some(*self), kind, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{EvalRow, StepRow};

    fn step(step: u64) -> StepRow {
        serde_json::from_value(json!({
            "step": step, "loss": 1.5, "grad_norm": 1.0, "lr": 0.1, "num_tokens": 1,
            "mean_token_accuracy": null, "tokens_per_s": null, "peak_bytes": null,
        }))
        .unwrap()
    }

    fn eval(step: u64) -> EvalRow {
        serde_json::from_value(json!({
            "step": step, "loss": 1.0, "perplexity": null, "token_accuracy": null,
            "exact_match": null,
        }))
        .unwrap()
    }

    fn all_of(position: &mut Position, store: &Store) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            match position.advance(store).unwrap() {
                messages if messages.is_empty() => return all,
                messages => all.extend(messages),
            }
        }
    }

    #[test]
    fn who_comes_back_misses_nothing_and_sees_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let mut position = Position::newest(&store).unwrap();
        assert!(all_of(&mut position, &store).is_empty());
        let first = store.begin_run(None, 1, &Config::default()).unwrap();
        store.record_eval(first, &eval(0), &[]).unwrap();
        for number in 1..=600 {
            store.record_step(first, &step(number)).unwrap();
        }
        store.record_event("kind", None, None, "words", None).unwrap();
        let second = store.begin_run(None, 2, &Config::default()).unwrap();
        store.record_step(second, &step(1)).unwrap();
        let all = all_of(&mut position.clone(), &store);
        let count = |kind| all.iter().filter(|message| message.kind == kind).count();
        assert_eq!(["run", "step", "eval", "event"].map(count), [2, 601, 1, 1]);
        let steps: Vec<_> = all.iter().filter(|m| m.kind == "step").collect();
        assert_eq!(
            (&steps[599].data["step"], &steps[600].data["run_id"]),
            (&json!(600), &json!(2))
        );
        // From any message on, the rest is the same.
        for seen in (0..all.len()).step_by(50) {
            let mut position: Position = all[seen].id.unwrap().to_string().parse().unwrap();
            assert_eq!(all_of(&mut position, &store).len(), all.len() - seen - 1, "after {seen}");
        }
        assert_eq!(Position::newest(&store).unwrap(), all.last().unwrap().id.unwrap());
    }

    #[test]
    fn who_is_far_behind_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        let mut position = Position::newest(&store).unwrap();
        for number in [1, 2, 6000, 6001] {
            store.record_step(run, &step(number)).unwrap();
        }
        let messages = position.advance(&store).unwrap();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].kind, "gap");
        assert_eq!(messages[0].data, json!({ "run_id": run, "from": 1, "to": 6001 }));
    }

    #[test]
    fn a_message_is_written_as_server_sent_events_are() {
        let id = Some("3.20.-1.7".parse().unwrap());
        let mut text = String::new();
        Message { id, kind: "step", data: json!({ "a": "b\nc" }) }.write_into(&mut text);
        assert_eq!(text, "id: 3.20.-1.7\nevent: step\ndata: {\"a\":\"b\\nc\"}\n\n");
        for wrong in ["", "1.2.3", "1.2.3.4.5", "1.-2.3.4", "a.b.c.d"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
    }
}
