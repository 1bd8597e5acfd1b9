//! Which rows belong to which step: a pure function of the settings and the number of rows, so that
//! a resumed run needs nothing but its step.

use chandler_data::row_order;

use crate::{TrainError, TrainSettings};

/// The steps of a run and the rows of each.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    num_rows: usize,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
    shuffle: bool,
    steps_per_epoch: u64,
    total_steps: u64,
    /// The epoch that was asked for last, and its order.
    order: Option<(u64, Vec<usize>)>,
}

impl BatchPlan {
    /// The plan of a run over `num_rows` rows.
    pub fn new(num_rows: usize, settings: &TrainSettings) -> Result<Self, TrainError> {
        let bad = |key, value: String, reason| Err(TrainError::BadSetting { key, value, reason });
        let (batch_size, accumulation) =
            (settings.per_device_train_batch_size, settings.gradient_accumulation_steps);
        if num_rows == 0 {
            return Err(TrainError::NoRows);
        }
        if batch_size == 0 {
            return bad("per_device_train_batch_size", "0".to_owned(), "must be at least 1");
        }
        if accumulation == 0 {
            return bad("gradient_accumulation_steps", "0".to_owned(), "must be at least 1");
        }
        let epochs = settings.num_train_epochs;
        if settings.max_steps.is_none() && !(epochs.is_finite() && epochs > 0.0) {
            return bad("num_train_epochs", epochs.to_string(), "must be above 0");
        }
        let steps_per_epoch = num_rows.div_ceil(batch_size).div_ceil(accumulation) as u64;
        let by_epochs = || (epochs * steps_per_epoch as f64).ceil() as u64;
        Ok(Self {
            num_rows,
            batch_size,
            accumulation,
            seed: settings.seed,
            shuffle: settings.shuffle,
            steps_per_epoch,
            total_steps: settings.max_steps.unwrap_or_else(by_epochs),
            order: None,
        })
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Optimizer steps of one pass over the data.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// The rows of each micro-batch of `step` (0 at the first). The last step of an epoch may have
    /// fewer and smaller ones.
    pub fn micro_batches(&mut self, step: u64) -> Vec<Vec<usize>> {
        let epoch = step / self.steps_per_epoch;
        let rows_per_step = self.batch_size * self.accumulation;
        let first = (step % self.steps_per_epoch) as usize * rows_per_step;
        let last = (first + rows_per_step).min(self.num_rows);
        let batch_size = self.batch_size;
        self.order_of(epoch)[first..last].chunks(batch_size).map(<[usize]>::to_vec).collect()
    }

    fn order_of(&mut self, epoch: u64) -> &[usize] {
        let (num_rows, seed, shuffle) = (self.num_rows, self.seed, self.shuffle);
        let make = || {
            let order =
                if shuffle { row_order(num_rows, seed, epoch) } else { (0..num_rows).collect() };
            (epoch, order)
        };
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.order = None;
        }
        &self.order.get_or_insert_with(make).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(batch: usize, accumulation: usize) -> TrainSettings {
        TrainSettings {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            shuffle: false,
            ..TrainSettings::default()
        }
    }

    #[test]
    fn the_last_step_of_an_epoch_may_be_smaller() {
        let mut plan = BatchPlan::new(7, &settings(2, 2)).unwrap();
        assert_eq!((plan.steps_per_epoch(), plan.total_steps()), (2, 6));
        assert_eq!(plan.micro_batches(0), [[0, 1], [2, 3]]);
        assert_eq!(plan.micro_batches(1), [vec![4, 5], vec![6]]);
        assert_eq!(plan.micro_batches(2), [[0, 1], [2, 3]]);
    }

    #[test]
    fn every_row_comes_once_an_epoch() {
        let shuffled = TrainSettings { shuffle: true, ..settings(3, 2) };
        let mut plan = BatchPlan::new(20, &shuffled).unwrap();
        let mut orders = vec![];
        for epoch in 0..3 {
            let steps = epoch * plan.steps_per_epoch()..(epoch + 1) * plan.steps_per_epoch();
            let mut rows: Vec<usize> =
                steps.flat_map(|step| plan.micro_batches(step)).flatten().collect();
            orders.push(rows.clone());
            rows.sort_unstable();
            assert_eq!(rows, (0..20).collect::<Vec<_>>());
        }
        assert_ne!(orders[0], orders[1]);
        assert_eq!(plan.micro_batches(0).concat(), orders[0][..6]);
    }

    #[test]
    fn settings_that_no_run_can_have() {
        for (rows, settings) in [
            (0, settings(1, 1)),
            (1, settings(0, 1)),
            (1, settings(1, 0)),
            (1, TrainSettings { num_train_epochs: 0.0, ..settings(1, 1) }),
        ] {
            let error = BatchPlan::new(rows, &settings).unwrap_err();
            assert!(error.hint().is_some(), "{error}");
        }
    }
}
