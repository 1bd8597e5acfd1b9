//! A mean over tokens of rows that have many each, and how far off it may be.

use super::distributions::t_97_5;

/// A sum over rows by another one, with its 95 % confidence interval.
///
/// Tokens of one row are no independent readings, rows are: the interval is that of the rows, by the
/// ratio's linearization (Cochran, Sampling Techniques, 3rd ed., 6.4), with Student's t.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    /// `None` of fewer than two rows, of rows that do not differ, and of what is not finite.
    pub(crate) interval: Option<[f64; 2]>,
}

impl Ratio {
    /// Of each row's part of the sum above and of that below; rows with nothing below say nothing.
    /// `None` where there is no other.
    pub(crate) fn of(rows: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Self> {
        let rows = rows.filter(|(_, below)| *below > 0.0);
        let (above, below) =
            rows.clone().fold((0.0, 0.0), |(above, below), (more, of)| (above + more, below + of));
        let n = rows.clone().count() as f64;
        if n == 0.0 {
            return None;
        }
        let value = above / below;
        let squares: f64 = rows.map(|(above, below)| (above - value * below).powi(2)).sum();
        let error = (n / (n - 1.0) * squares).sqrt() / below;
        let half = t_97_5(n - 1.0) * error;
        let is_known = n > 1.0 && half > 0.0 && half.is_finite();
        Some(Self { value, interval: is_known.then_some([value - half, value + half]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoring::Summary;

    fn ratio(rows: &[(f64, f64)]) -> Ratio {
        Ratio::of(rows.iter().copied()).unwrap()
    }

    #[test]
    fn of_rows_of_one_token_it_is_the_mean() {
        let losses = [0.5, 2.0, 1.25, 3.0];
        let rows = losses.map(|loss| (loss, 1.0));
        let (mean, ratio) = (Summary::of_any(&losses), ratio(&rows));
        let [low, high] = ratio.interval.unwrap();
        let near = |left: f64, right: Option<f64>| (left - right.unwrap()).abs() < 1e-12;
        assert!(near(ratio.value, mean.value) && near(low, mean.low) && near(high, mean.high));
    }

    #[test]
    fn it_is_weighted_by_tokens() {
        // 12 / 8, and deviations 2 - 3, 10 - 9 with t of one degree.
        let ratio = ratio(&[(2.0, 2.0), (10.0, 6.0)]);
        let half = 12.706_204_736_174_69 * (2.0_f64 * 2.0).sqrt() / 8.0;
        assert_eq!(ratio.value, 1.5);
        let [low, high] = ratio.interval.unwrap();
        assert!((low - 1.5 + half).abs() < 1e-8 && (high - 1.5 - half).abs() < 1e-8);
    }

    #[test]
    fn what_tells_nothing_of_its_spread_has_no_interval() {
        assert_eq!(Ratio::of([(0.0, 0.0)].into_iter()), None);
        for rows in [&[(3.0, 2.0)][..], &[(3.0, 2.0), (1.5, 1.0)], &[(f64::NAN, 1.0), (1.0, 1.0)]] {
            assert_eq!(ratio(rows).interval, None, "{rows:?}");
        }
    }
}
