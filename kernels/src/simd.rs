//! Plain loops, compiled for the vector units that the CPU has.

use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use std::sync::LazyLock;

use crate::gemm;

/// The widest vector instructions that the CPU has and that matrix products may use.
static ARCH: LazyLock<Arch> = LazyLock::new(gemm::vectors);

/// Runs `loops` with the widest vector instructions that the CPU has. What it calls must be
/// inlined for that to reach it, and so must the closure, which the compiler does if it is short;
/// for long loops there is [`dispatch`].
#[inline]
pub(crate) fn vectorized<R>(loops: impl FnOnce() -> R) -> R {
    ARCH.dispatch(Loops(loops))
}

/// The same for loops whose `with_simd` is `#[inline(always)]`, so that they are vector code
/// however long they are.
#[inline]
pub(crate) fn dispatch<L: WithSimd>(loops: L) -> L::Output {
    ARCH.dispatch(loops)
}

/// Vouches for AVX-512, where loops run with it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn avx512() -> Option<pulp::x86::V4> {
    match *ARCH {
        Arch::V4(token) => Some(token),
        _ => None,
    }
}

struct Loops<F>(F);

impl<R, F: FnOnce() -> R> WithSimd for Loops<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// Rounds to the nearest, ties to even; the same as [`bf16::from_f32`], without a branch.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded } as u16)
}

/// `eˣ` by a polynomial on half a binade around 0, without a branch, so that loops over it become
/// vector code: within 2 units in the last place of the true value. Below −87.3 it is 0, above
/// 88.3 infinite.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with so few bits that its product with a small integer is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let bounded = x.clamp(-87.3, 88.3);
    let shifted = bounded * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN2_HIGH - n * LN2_LOW;
    // The Taylor series, its last coefficients moved a little to even out the error (Cephes, expf).
    let tail = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let tail = tail * r + 8.333_452e-3;
    let tail = tail * r + 4.166_579_6e-2;
    let tail = tail * r + 1.666_666_5e-1;
    let tail = tail * r + 0.5;
    let fraction = tail * (r * r) + r + 1.0;
    let exponent =
        f32::from_bits((((shifted.to_bits() as i32) << 23) as u32).wrapping_add(0x3f80_0000));
    let value = fraction * exponent;
    let value = if x < -87.3 { 0.0 } else { value };
    if x > 88.3 { f32::INFINITY } else { value }
}

/// `2ˣ` for `x ≤ 1`, within 2 units in the last place; 0 below −126. A polynomial of least relative
/// error on half a binade around 0, without a branch.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Next to ln 2.
    const LINEAR: f32 = f32::from_bits(0x3f31_7215);
    let bounded = if x < -126.0 { -126.0 } else { x };
    let shifted = bounded + ROUND;
    let r = bounded - (shifted - ROUND);
    let y = 1.326_472_7e-3f32.mul_add(r, 9.671_513e-3);
    let y = y.mul_add(r, 5.550_733_6e-2);
    let y = y.mul_add(r, 2.402_224_2e-1);
    let y = y.mul_add(r, LINEAR);
    let y = y.mul_add(r, 1.0);
    let value = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -126.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let unit = expected * f64::from(f32::EPSILON);
            assert!((got - expected).abs() <= 2.0 * unit, "exp({x}) = {got}, not {expected}");
        }
        assert_eq!((exp(-100.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_two_are_within_two_units_in_the_last_place() {
        assert!((exp2(0.0), exp2(-3.0), exp2(-127.0)) == (1.0, 0.125, 0.0));
        assert!(exp2(f32::NEG_INFINITY) == 0.0 && exp2(f32::NAN).is_nan());
        for step in 0..200_000 {
            let x = -126.0 * (step as f32 / 2e5);
            let error = f64::from(exp2(x)) / f64::from(x).exp2() - 1.0;
            assert!(error.abs() < 2.4e-7, "2^{x}: {error:e}");
        }
    }

    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        for bits in (0..u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let (got, expected) = (to_bf16(x), bf16::from_f32(x));
            assert!(got == expected || got.is_nan() && expected.is_nan(), "{x}");
        }
    }
}
