//! The activations of single numbers, without a branch, so that loops over them become vector code.

use crate::simd;

/// An activation `x · share(x)`, where `share` goes from 0 to 1.
pub(super) trait Gate: Sync {
    /// The activation.
    fn value(x: f32) -> f32;
    /// The activation and its derivative.
    fn value_and_slope(x: f32) -> (f32, f32);
}

pub(super) struct Silu;
pub(super) struct GeluTanh;
pub(super) struct GeluErf;

impl Gate for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let sigmoid = sigmoid(x);
        let value = x * sigmoid;
        (value, value.mul_add(1.0 - sigmoid, sigmoid))
    }
}

/// `½·(1 + tanh(u))` is `σ(2u)`, which has no cancellation anywhere.
impl Gate for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x * (x * x).mul_add(TWICE_CUBIC, TWICE_LINEAR))
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let square = x * x;
        let sigmoid = sigmoid(x * square.mul_add(TWICE_CUBIC, TWICE_LINEAR));
        let value = x * sigmoid;
        let inner_slope = square.mul_add(3.0 * TWICE_CUBIC, TWICE_LINEAR);
        // Where the square overflows, σ is 0 or 1 and the curve flat.
        let curve = value * (1.0 - sigmoid) * inner_slope.min(f32::MAX);
        (value, curve + sigmoid)
    }
}

/// `2·√(2/π)` and that times 0.044715.
const TWICE_LINEAR: f32 = 1.595_769;
const TWICE_CUBIC: f32 = 0.071_354_814;

impl Gate for GeluErf {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal(x).0
    }

    #[inline(always)]
    fn value_and_slope(x: f32) -> (f32, f32) {
        let (cdf, density) = normal(x);
        (x * cdf, x.mul_add(density, cdf))
    }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + simd::exp(-x))
}

/// Φ and φ, the distribution and the density of the standard normal.
///
/// Within 1 of zero `Φ(x) − ½` is an odd polynomial. Beyond, `1 − Φ(|x|) = P(t)·e^(−x²/2)` with
/// `t = 1 / (1 + q·|x|)` and a polynomial `P` without a constant term, which is the form of Hastings
/// (1955; Abramowitz and Stegun 7.1.26) with one more term. The coefficients of both are fitted to
/// the least largest error of Φ, 7.4e-9 and 9.4e-9 before rounding to f32.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let square = x * x;
    let near = square.mul_add(9.246_84e-5, -1.165_350_8e-3);
    let near = square.mul_add(near, 9.964_167e-3);
    let near = square.mul_add(near, -6.648_873e-2);
    let near = x * square.mul_add(near, 0.398_942_2);
    let exp = simd::exp(-0.5 * square);
    let t = 1.0 / x.abs().mul_add(0.28, 1.0);
    let far = t.mul_add(-0.105_818_74, 0.389_918_7);
    let far = t.mul_add(far, -0.237_069_17);
    let far = t.mul_add(far, 0.268_973_93);
    let far = t.mul_add(far, 0.067_470_04);
    let far = t.mul_add(far, 0.116_525_23);
    let far = 0.5 - t * far * exp;
    let half = if square < 1.0 { near } else { far.copysign(x) };
    (0.5 + half, exp * INV_SQRT_TAU)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `erf` by its series and, where that cancels, by its continued fraction.
    fn cdf(x: f64) -> f64 {
        let z = x.abs() / 2f64.sqrt();
        let upper = if z < 2.5 {
            let (mut term, mut sum, mut n) = (z, z, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -z * z / n;
                sum += term / (2.0 * n + 1.0);
            }
            0.5 - sum / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..200).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
            0.5 * (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        if x < 0.0 { upper } else { 1.0 - upper }
    }

    #[test]
    fn the_distribution_is_within_one_in_ten_million() {
        let mut worst = 0f64;
        for i in -140_000..=140_000 {
            let x = i as f32 * 1e-4;
            let exact = cdf(f64::from(x));
            let (got, density) = simd::vectorized(|| normal(x));
            worst = worst.max((f64::from(got) - exact).abs());
            let phi = (-0.5 * f64::from(x).powi(2)).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(density) - phi).abs() < 1e-7, "φ({x}) = {density}, not {phi}");
        }
        // Of erf, which goes from −1 to 1, that is 2e-7.
        assert!(worst < 1e-7, "{worst:e}");
    }

    fn values<G: Gate>(x: f32) -> [f32; 3] {
        let (value, slope) = G::value_and_slope(x);
        assert!(value == G::value(x) || value.is_nan(), "{x}");
        [value, slope, G::value(-x)]
    }

    #[test]
    fn far_from_zero_the_gate_is_open_or_shut() {
        for x in [60f32, 1e4, 1e19, 1e30, f32::MAX] {
            for got in [values::<Silu>(x), values::<GeluTanh>(x), values::<GeluErf>(x)] {
                assert_eq!(got[..2], [x, 1.0], "{x}");
                assert!(got[2].abs() < 1e-15 * x.min(60.0), "{x}: {got:?}");
            }
            for slope in
                [Silu::value_and_slope, GeluTanh::value_and_slope, GeluErf::value_and_slope]
            {
                assert!(slope(-x).1.abs() < 1e-20, "{x}");
            }
        }
        for nan in [values::<Silu>(f32::NAN), values::<GeluTanh>(f32::NAN)] {
            assert!(nan.iter().all(|x| x.is_nan()), "{nan:?}");
        }
        assert!(values::<GeluErf>(f32::NAN).iter().all(|x| x.is_nan()));
    }
}
