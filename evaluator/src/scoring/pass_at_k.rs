//! pass@k: the chance that one of k answers is right (Chen et al. 2021).

use super::summary::Summary;

/// The unbiased estimate of equation 1, `1 − C(n−c, k) / C(n, k)`, for `correct` of `samples`
/// answers, as a product that neither overflows nor cancels.
///
/// `None` unless `correct ≤ samples` and `1 ≤ k ≤ samples`. Takes `min(correct, k)` steps.
pub fn pass_at_k(samples: u64, correct: u64, k: u64) -> Option<f64> {
    if correct > samples || k == 0 || k > samples {
        return None;
    }
    if samples - correct < k {
        return Some(1.0);
    }
    // C(n−c, k) / C(n, k) is symmetric in c and k: the shorter product is taken.
    let (few, many) = (correct.min(k), correct.max(k));
    let fails: f64 = (0..few).map(|step| 1.0 - many as f64 / (samples - step) as f64).product();
    Some(1.0 - fails)
}

/// Mean over problems, each `(samples, correct)`, with its 95 % interval over problems; `None`
/// where one of them has no pass@k.
pub fn pass_at_k_over(problems: &[(u64, u64)], k: u64) -> Option<Summary> {
    let of = |(samples, correct): &(u64, u64)| pass_at_k(*samples, *correct, k);
    let chances: Vec<f64> = problems.iter().map(of).collect::<Option<_>>()?;
    Some(Summary::of(&chances))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(n: u64, k: u64) -> f64 {
        if k > n { 0.0 } else { (0..k).map(|i| (n - i) as f64 / (i + 1) as f64).product() }
    }

    #[test]
    fn it_is_the_share_of_subsets_with_a_right_answer() {
        for samples in 1..12 {
            for correct in 0..=samples {
                for k in 1..=samples {
                    let expected = 1.0 - choose(samples - correct, k) / choose(samples, k);
                    let found = pass_at_k(samples, correct, k).unwrap();
                    assert!((found - expected).abs() < 1e-12, "{samples} {correct} {k}: {found}");
                }
            }
        }
        assert_eq!(pass_at_k(10, 0, 3), Some(0.0));
        assert_eq!(pass_at_k(10, 3, 1), Some(1.0 - 0.7));
    }

    #[test]
    fn it_is_stable_where_binomials_overflow() {
        let found = pass_at_k(100_000, 50_000, 100).unwrap();
        assert!(found > 0.999_999 && found <= 1.0);
        let found = pass_at_k(1_000_000, 1, 1000).unwrap();
        assert!((found - 1e-3).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_estimate_is_none() {
        assert_eq!(pass_at_k(3, 4, 1), None);
        assert_eq!(pass_at_k(3, 1, 0), None);
        assert_eq!(pass_at_k(3, 1, 4), None);
        assert_eq!(pass_at_k_over(&[(3, 1), (2, 1)], 3), None);
        let summary = pass_at_k_over(&[(2, 1), (2, 2), (2, 0)], 1).unwrap();
        assert_eq!((summary.value, summary.count), (Some(0.5), 3));
        assert!(summary.low.is_some_and(|low| low == 0.0));
    }
}
