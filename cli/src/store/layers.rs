//! What each layer of a model measured, in the steps that looked.

use chandler_trainer::LayerNorms;
use rusqlite::{Row, params};

use super::curve::width_for;
use super::error::{Doing, StoreError};
use super::{StepRow, Store};

const COLUMNS: &str = "step, layer, grad_norm, update_norm, weight_norm";

/// A step that looked at every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerStep {
    /// The step, from 1.
    pub step: u64,
    /// Its layers, in the model's order.
    pub layers: Vec<LayerNorms>,
}

impl Store {
    /// Records what the layers of a step measured, in the place of what was there.
    pub(super) fn record_layers(
        &self,
        run_id: i64,
        step: u64,
        layers: &[LayerNorms],
    ) -> Result<(), StoreError> {
        let record = || {
            let mut statement = self.connection.prepare_cached(
                "INSERT OR REPLACE INTO layers
                     (run_id, step, position, layer, grad_norm, update_norm, weight_norm)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (position, one) in layers.iter().enumerate() {
                let LayerNorms { layer, grad_norm, update_norm, weight_norm } = one;
                let (step, place) = (step as i64, position as i64);
                let values =
                    params![run_id, step, place, layer, grad_norm, update_norm, weight_norm];
                statement.execute(values)?;
            }
            Ok::<_, rusqlite::Error>(())
        };
        record().doing("record layers")
    }

    /// The first `limit` steps of a run after `step`, in order, with what their layers measured.
    pub fn steps_with_layers(
        &self,
        run_id: i64,
        step: u64,
        limit: usize,
    ) -> Result<Vec<StepRow>, StoreError> {
        let mut rows = self.steps_after(run_id, step, limit)?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(rows) };
        for found in self.layer_steps(run_id, first.step, last.step)? {
            if let Ok(place) = rows.binary_search_by_key(&found.step, |row| row.step) {
                rows[place].layers = found.layers;
            }
        }
        Ok(rows)
    }

    /// The layers of at most `most` of the steps `from..=to` of a run: the last one that looked of
    /// each stretch, where stretches have a power of two of steps.
    pub fn layers(
        &self,
        run_id: i64,
        from: u64,
        to: u64,
        most: usize,
    ) -> Result<Vec<LayerStep>, StoreError> {
        let (from, to) = (from.clamp(1, i64::MAX as u64), to.min(i64::MAX as u64));
        let (Some(low), Some(high)) =
            (self.looked("min", run_id, from, to)?, self.looked("max", run_id, from, to)?)
        else {
            return Ok(vec![]);
        };
        let width = width_for(low, high, most.max(1) as u64);
        let mut steps = vec![];
        let mut next = Some(low);
        while let Some(first) = next {
            let end = (first.div_ceil(width) * width).min(high);
            let last = self.looked("max", run_id, first, end)?.unwrap_or(first);
            steps.extend(self.layer_steps(run_id, last, last)?);
            next = self.looked("min", run_id, end + 1, high)?;
        }
        Ok(steps)
    }

    /// The first (`min`) or the last (`max`) of the steps `from..=to` that looked.
    fn looked(
        &self,
        which: &str,
        run_id: i64,
        from: u64,
        to: u64,
    ) -> Result<Option<u64>, StoreError> {
        let sql = format!(
            "SELECT {which}(step) FROM layers WHERE run_id = ?1 AND step BETWEEN ?2 AND ?3"
        );
        let step = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let values = params![run_id, from as i64, to as i64];
            statement.query_row(values, |row| row.get::<_, Option<i64>>(0))
        };
        Ok(step().doing("read which steps looked at layers")?.map(|step| step as u64))
    }

    /// Those of the steps `from..=to` that looked, in order.
    fn layer_steps(&self, run_id: i64, from: u64, to: u64) -> Result<Vec<LayerStep>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM layers WHERE run_id = ?1 AND step BETWEEN ?2 AND ?3
             ORDER BY step, position"
        );
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![run_id, from as i64, to as i64], one_layer)?;
            let mut steps: Vec<LayerStep> = vec![];
            for row in rows {
                let (step, layer) = row?;
                match steps.last_mut() {
                    Some(last) if last.step == step => last.layers.push(layer),
                    _ => steps.push(LayerStep { step, layers: vec![layer] }),
                }
            }
            Ok::<_, rusqlite::Error>(steps)
        };
        read().doing("read layers")
    }
}

fn one_layer(row: &Row<'_>) -> rusqlite::Result<(u64, LayerNorms)> {
    let layer = LayerNorms {
        layer: row.get(1)?,
        grad_norm: row.get(2)?,
        update_norm: row.get(3)?,
        weight_norm: row.get(4)?,
    };
    Ok((row.get::<_, i64>(0)? as u64, layer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn layers(step: u64) -> Vec<LayerNorms> {
        let one = |layer: &str, grad_norm| LayerNorms {
            layer: layer.to_owned(),
            grad_norm,
            update_norm: (step > 1).then_some(0.5),
            weight_norm: Some(3.0),
        };
        vec![one("layers.9", step as f64), one("layers.10", 2.0 * step as f64)]
    }

    /// A run that looked at every fiftieth step, and the first.
    fn store_with(steps: u64) -> (tempfile::TempDir, Store, i64) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let run = store.begin_run(None, 1, &Config::default()).unwrap();
        for step in 1..=steps {
            let looks = step == 1 || step.is_multiple_of(50);
            let layers = if looks { layers(step) } else { vec![] };
            store.record_step(run, &StepRow { step, layers, ..StepRow::default() }).unwrap();
        }
        (folder, store, run)
    }

    #[test]
    fn a_step_comes_back_with_its_layers_in_the_order_of_the_model() {
        let (_folder, store, run) = store_with(120);
        for row in store.steps_with_layers(run, 40, 70).unwrap() {
            let expected = if row.step.is_multiple_of(50) { layers(row.step) } else { vec![] };
            assert_eq!(row.layers, expected, "{}", row.step);
        }
        let again = StepRow { step: 50, layers: layers(1), ..StepRow::default() };
        store.record_step(run, &again).unwrap();
        assert_eq!(store.steps_with_layers(run, 49, 1).unwrap(), [again]);
    }

    #[test]
    fn a_long_run_is_read_in_as_many_steps_as_are_wanted() {
        let (_folder, store, run) = store_with(1000);
        let read = |from, to, most| -> Vec<u64> {
            let found = store.layers(run, from, to, most).unwrap();
            assert!(found.iter().all(|found| found.layers == layers(found.step)));
            found.into_iter().map(|found| found.step).collect()
        };
        let all: Vec<u64> = (0..=20).map(|number| (50 * number).max(1)).collect();
        assert_eq!(read(1, u64::MAX, 1000), all);
        // Stretches of 128 and of 512 steps.
        assert_eq!(read(1, u64::MAX, 8), [100, 250, 350, 500, 600, 750, 850, 1000]);
        assert_eq!(read(1, u64::MAX, 2), [500, 1000]);
        assert_eq!(read(0, u64::MAX, 0), [1000]);
        assert_eq!(read(120, 260, 1000), [150, 200, 250]);
        assert_eq!(read(101, 149, 10), [0u64; 0]);
        assert!(store.layers(run + 1, 1, u64::MAX, 10).unwrap().is_empty());
    }
}
