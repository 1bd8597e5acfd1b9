//! Student's t and the binomial distribution, both from the regularized incomplete beta function.

/// Of the standard normal distribution, what 97.5 % lie below.
pub(super) const NORMAL_97_5: f64 = 1.959_963_984_540_054;

/// Probability that |T| exceeds `t` under Student's distribution.
pub(super) fn t_two_sided(t: f64, degrees: f64) -> f64 {
    let square = t * t;
    if !square.is_finite() {
        return 0.0;
    }
    let sum = degrees + square;
    incomplete_beta(degrees / 2.0, 0.5, degrees / sum, square / sum)
}

/// What |T| exceeds with a probability of 5 %: the factor of a 95 % interval.
pub(super) fn t_97_5(degrees: f64) -> f64 {
    // That of one degree, the largest, is 12.7.
    let (mut low, mut high) = (NORMAL_97_5, 12.75);
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if t_two_sided(middle, degrees) > 0.05 {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// Two-sided p of `fewer` of `all` fair coins on one side, where `fewer` is at most half of them:
/// McNemar's exact test.
pub(super) fn fair_coins(fewer: usize, all: usize) -> f64 {
    let (fewer, all) = (fewer as f64, all as f64);
    if 2.0 * fewer >= all {
        return 1.0;
    }
    (2.0 * incomplete_beta(all - fewer, fewer + 1.0, 0.5, 0.5)).min(1.0)
}

/// `I_x(a, b)`, DLMF 8.17, for `x` and `y = 1 − x`, which is asked for because it may be tiny.
fn incomplete_beta(a: f64, b: f64, x: f64, y: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if y <= 0.0 {
        return 1.0;
    }
    let front = (a * x.ln() + b * y.ln() - ln_beta(a, b)).exp();
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, y) / b
    }
}

/// The continued fraction of DLMF 8.17.22, from the front (Lentz's method).
fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_0 = |value: f64| if value.abs() < TINY { TINY } else { value };
    let (mut numerator, mut denominator) = (1.0, 0.0);
    let mut value = 1.0;
    for step in 1..100_000u32 {
        let m = f64::from(step / 2);
        let coefficient = if step % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        denominator = 1.0 / away_from_0(1.0 + coefficient * denominator);
        numerator = away_from_0(1.0 + coefficient / numerator);
        let factor = numerator * denominator;
        value *= factor;
        if (factor - 1.0).abs() < 1e-16 {
            break;
        }
    }
    1.0 / value
}

/// `ln B(a, b)`.
fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// `ln Γ(x)` for `x > 0`: Stirling's series, DLMF 5.11.1, from 15 on, and the recurrence below.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 15.0 {
        product *= x;
        x += 1.0;
    }
    let square = x * x;
    let series = (1.0 / 12.0
        - (1.0 / 360.0
            - (1.0 / 1260.0 - (1.0 / 1680.0 - 1.0 / 1188.0 / square) / square) / square)
            / square)
        / x;
    let half_ln_2_pi = 0.918_938_533_204_672_7;
    (x - 0.5) * x.ln() - x + half_ln_2_pi + series - f64::ln(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors as statistical tables print them.
    #[test]
    fn factors_are_those_of_the_tables() {
        let table = [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)];
        for (degrees, expected) in table {
            let found = t_97_5(f64::from(degrees));
            assert!((found - expected).abs() < 5e-4, "{degrees}: {found}");
        }
        assert!((t_97_5(1e9) - NORMAL_97_5).abs() < 1e-6);
    }

    #[test]
    fn one_degree_is_cauchy_and_two_have_a_closed_form() {
        for t in [0.0_f64, 1e-3, 0.5, 1.0, 3.0, 40.0, 1e6] {
            let cauchy = 1.0 - 2.0 * t.atan() / std::f64::consts::PI;
            assert!((t_two_sided(t, 1.0) - cauchy).abs() < 1e-12, "{t}");
            let two = 1.0 - t / (2.0 + t * t).sqrt();
            assert!((t_two_sided(t, 2.0) - two).abs() < 1e-12, "{t}");
        }
        assert_eq!(t_two_sided(f64::INFINITY, 3.0), 0.0);
    }

    #[test]
    fn coins_are_counted() {
        assert_eq!(fair_coins(0, 0), 1.0);
        assert_eq!(fair_coins(3, 6), 1.0);
        for all in 1..20_i32 {
            let mut choose = 1.0;
            let mut below = 0.0;
            for fewer in 0..(all + 1) / 2 {
                below += choose * 0.5_f64.powi(all);
                choose *= f64::from(all - fewer) / f64::from(fewer + 1);
                let found = fair_coins(fewer as usize, all as usize);
                assert!((found - (2.0 * below).min(1.0)).abs() < 1e-12, "{fewer} of {all}");
            }
        }
    }

    #[test]
    fn factorials_are_gammas() {
        let mut factorial = 1.0_f64;
        for n in 1..30 {
            assert!((ln_gamma(f64::from(n)) - factorial.ln()).abs() < 1e-12, "{n}");
            factorial *= f64::from(n);
        }
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-14);
    }
}
