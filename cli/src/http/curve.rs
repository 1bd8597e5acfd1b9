//! A curve as the browser wants it: a column for each quantity.

use std::collections::BTreeMap;

use chandler_vram::Category;
use serde::Serialize;

use crate::store::{Curve, SERIES};

/// `GET /api/runs/{id}/metrics`. All columns are of one length; what is unknown is `null`.
#[derive(Debug, Serialize)]
pub(super) struct Course {
    run_id: i64,
    /// Steps in a point.
    bucket_steps: u64,
    /// The last step of each point.
    step: Vec<u64>,
    /// Steps that each point stands for: a run that was gone on with may begin within a bucket.
    count: Vec<u64>,
    /// Tokens seen up to that step.
    num_tokens: Vec<u64>,
    /// Most memory in use, in bytes.
    peak_bytes: Vec<Option<u64>>,
    /// Smallest, mean and largest value of each quantity.
    #[serde(flatten)]
    series: BTreeMap<&'static str, Columns>,
    /// Most bytes of each category that there ever were.
    memory: BTreeMap<Category, Vec<u64>>,
}

#[derive(Debug, Default, Serialize)]
struct Columns {
    min: Vec<Option<f64>>,
    mean: Vec<Option<f64>>,
    max: Vec<Option<f64>>,
}

impl Course {
    /// With so many digits of each value, or all.
    pub(super) fn new(run_id: i64, curve: &Curve, digits: Option<usize>) -> Self {
        let buckets = &curve.buckets;
        let mut series: BTreeMap<&'static str, Columns> = BTreeMap::new();
        for (place, name) in SERIES.into_iter().enumerate() {
            let columns = series.entry(name).or_default();
            for span in buckets.iter().map(|bucket| bucket.series[place]) {
                let round = |value: f64| digits.map_or(value, |digits| rounded(value, digits));
                columns.min.push(span.map(|span| round(span.min)));
                columns.mean.push(span.map(|span| round(span.mean)));
                columns.max.push(span.map(|span| round(span.max)));
            }
        }
        let of = |category: Category| {
            let bytes = buckets.iter().map(|bucket| bucket.memory.get(&category).copied());
            let bytes: Vec<u64> = bytes.map(Option::unwrap_or_default).collect();
            bytes.iter().any(|bytes| *bytes > 0).then_some((category, bytes))
        };
        Self {
            run_id,
            bucket_steps: curve.bucket_steps,
            step: buckets.iter().map(|bucket| bucket.last_step).collect(),
            count: buckets.iter().map(|bucket| bucket.count).collect(),
            num_tokens: buckets.iter().map(|bucket| bucket.num_tokens).collect(),
            peak_bytes: buckets.iter().map(|bucket| bucket.peak_bytes).collect(),
            series,
            memory: Category::ALL.into_iter().filter_map(of).collect(),
        }
    }
}

impl Course {
    /// For charts that have none of memory.
    pub(super) fn without_memory(self) -> Self {
        Self { memory: BTreeMap::new(), ..self }
    }
}

/// The value in so many significant digits, from 1 to 17.
pub(super) fn rounded(value: f64, digits: usize) -> f64 {
    let text = format!("{value:.*e}", digits.clamp(1, 17) - 1);
    text.parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_the_digits_that_are_asked_for() {
        for (value, digits, expected) in [
            (1.234_567, 3, 1.23),
            (-0.000_123_456, 4, -0.000_123_5),
            (98_765.4, 2, 99_000.0),
            (0.1, 40, 0.1),
            (0.0, 0, 0.0),
        ] {
            assert_eq!(rounded(value, digits), expected, "{value} in {digits}");
        }
        assert!(rounded(f64::NAN, 3).is_nan());
    }
}
