//! What is usual: median and spread of readings, neither of which a few wild ones move.

use std::collections::VecDeque;

/// The median absolute deviation of a normal distribution, times this, is its standard deviation:
/// 1 / Φ⁻¹(3/4). Huber and Ronchetti, Robust Statistics, 2nd ed., section 5.1.
const MAD_TO_DEVIATION: f64 = 1.4826;

/// The last readings.
#[derive(Debug, Clone)]
pub(super) struct Window {
    readings: VecDeque<f64>,
    length: usize,
}

impl Window {
    /// A window of the last `length` readings.
    pub(super) fn new(length: usize) -> Self {
        Self { readings: VecDeque::with_capacity(length), length }
    }

    /// Takes a reading in; the oldest makes room for it.
    pub(super) fn push(&mut self, reading: f64) {
        if self.readings.len() == self.length {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.readings.len()
    }

    /// The median of them.
    pub(super) fn median(&self) -> Option<f64> {
        median(self.readings.iter().copied())
    }

    /// The median, and a robust estimate of the standard deviation around it.
    pub(super) fn median_and_deviation(&self) -> Option<(f64, f64)> {
        let middle = self.median()?;
        let apart = median(self.readings.iter().map(|reading| (reading - middle).abs()))?;
        Some((middle, MAD_TO_DEVIATION * apart))
    }
}

/// Readings from all of a long series: when there are too many, every second one goes, and from
/// then on only every second one is taken.
#[derive(Debug, Clone)]
pub(super) struct Thinned {
    readings: Vec<f64>,
    most: usize,
    /// One of so many is taken.
    stride: u64,
    seen: u64,
}

impl Thinned {
    /// At most `most` readings.
    pub(super) fn new(most: usize) -> Self {
        Self { readings: Vec::with_capacity(most), most, stride: 1, seen: 0 }
    }

    /// Takes a reading in, if it is its turn.
    pub(super) fn push(&mut self, reading: f64) {
        if self.seen.is_multiple_of(self.stride) {
            self.readings.push(reading);
        }
        self.seen += 1;
        if self.readings.len() == self.most {
            let mut keep = false;
            self.readings.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride *= 2;
        }
    }

    /// How many were seen, taken or not.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The median of those that were taken.
    pub(super) fn median(&self) -> Option<f64> {
        median(self.readings.iter().copied())
    }
}

/// The middle reading, or the mean of the two in the middle; none of nothing.
fn median(readings: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = readings.collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wild_readings_move_neither_median_nor_deviation_far() {
        let mut window = Window::new(5);
        assert_eq!(window.median_and_deviation(), None);
        for reading in [100.0, 1.0, 2.0, 3.0, 4.0, 1000.0] {
            window.push(reading);
        }
        assert_eq!((window.len(), window.median()), (5, Some(3.0)));
        assert_eq!(window.median_and_deviation(), Some((3.0, MAD_TO_DEVIATION)));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
    }

    #[test]
    fn a_long_series_is_thinned_evenly() {
        let mut thinned = Thinned::new(8);
        for reading in 0..1000 {
            thinned.push(f64::from(reading));
        }
        assert!(thinned.readings.len() < 8 && thinned.seen() == 1000);
        let steps: Vec<f64> = thinned.readings.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| *step == steps[0]), "{:?}", thinned.readings);
        assert!((thinned.median().unwrap() - 500.0).abs() < 130.0);
    }
}
