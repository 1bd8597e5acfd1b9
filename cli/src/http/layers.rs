//! `GET /api/runs/{id}/layers`: what each layer measured over the steps.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use chandler_trainer::LayerNorms;
use serde::{Deserialize, Serialize};

use super::curve::rounded;
use super::read::{AnId, Answer, Asked, no_run};
use super::routes::App;
use crate::store::LayerStep;

/// Steps where the request does not say how many.
const USUAL_POINTS: usize = 200;
/// Steps at most.
const MOST_POINTS: usize = 1000;
/// Values of a quantity at most: a model of many layers has fewer steps.
const MOST_CELLS: usize = 20_000;

/// A stretch of a run, in so many steps of so many digits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stretch {
    from: Option<u64>,
    to: Option<u64>,
    points: Option<usize>,
    digits: Option<usize>,
}

/// The answer: of each quantity a row for each layer, with a value for each step. What is not known
/// is `null`.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Layers {
    run_id: i64,
    /// In the model's order.
    layers: Vec<String>,
    step: Vec<u64>,
    grad_norm: Vec<Vec<Option<f64>>>,
    /// The norm of the update by that of the weights.
    update_ratio: Vec<Vec<Option<f64>>>,
}

pub(super) async fn layers(
    State(app): State<Arc<App>>,
    id: AnId,
    stretch: Asked<Stretch>,
) -> Answer<Layers> {
    let (Path(id), Query(stretch)) = (id?, stretch?);
    let wanted = stretch.points.unwrap_or(USUAL_POINTS).clamp(1, MOST_POINTS);
    let (from, to) = (stretch.from.unwrap_or(1), stretch.to.unwrap_or(u64::MAX));
    let read = app.read(move |store| {
        let newest = store.layers(id, from, to, 1)?;
        let count = newest.first().map_or(1, |newest| newest.layers.len().max(1));
        let points = wanted.min(MOST_CELLS / count).max(1);
        Ok((store.run(id)?, store.layers(id, from, to, points)?))
    });
    let (run, steps) = read.await?;
    run.ok_or_else(|| no_run(id))?;
    Ok(Json(Layers::new(id, &steps, stretch.digits)))
}

impl Layers {
    /// With so many digits of each value, or all.
    fn new(run_id: i64, steps: &[LayerStep], digits: Option<usize>) -> Self {
        let names = steps.last().map_or(&[][..], |step| &step.layers);
        let round = |value: f64| digits.map_or(value, |digits| rounded(value, digits));
        let rows = |of: fn(&LayerNorms) -> Option<f64>| {
            let row = |place: usize| {
                let value = |step: &LayerStep| step.layers.get(place).and_then(of).map(round);
                steps.iter().map(value).collect()
            };
            (0..names.len()).map(row).collect()
        };
        Self {
            run_id,
            layers: names.iter().map(|one| one.layer.clone()).collect(),
            step: steps.iter().map(|step| step.step).collect(),
            grad_norm: rows(|one| Some(one.grad_norm)),
            update_ratio: rows(LayerNorms::update_ratio),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_a_row_and_every_step_a_column() {
        let one = |layer: &str, grad_norm, update_norm| LayerNorms {
            layer: layer.to_owned(),
            grad_norm,
            update_norm,
            weight_norm: Some(3.0),
        };
        let steps = [
            LayerStep { step: 1, layers: vec![one("a", 0.123, None), one("b", 2.0, Some(0.0))] },
            LayerStep { step: 50, layers: vec![one("a", 3.0, Some(1.0)), one("b", 4.0, None)] },
        ];
        let expected = Layers {
            run_id: 7,
            layers: vec!["a".into(), "b".into()],
            step: vec![1, 50],
            grad_norm: vec![vec![Some(0.12), Some(3.0)], vec![Some(2.0), Some(4.0)]],
            update_ratio: vec![vec![None, Some(0.33)], vec![Some(0.0), None]],
        };
        assert_eq!(Layers::new(7, &steps, Some(2)), expected);
        assert_eq!(Layers::new(7, &[], None), Layers { run_id: 7, ..Layers::default() });
    }
}
