//! Moments in 8 bits: blocks of 256 values, each a code times the block's largest magnitude
//! (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", section 2).
//!
//! A code is read like a number in their dynamic tree: leading zeros count powers of ten, the
//! first one ends them, and the bits after it are a fraction that divides the decade evenly. With
//! `i` bits after it, a code stands for `10^(i − most) · (0.1 + 0.9 · (fraction + ½) / 2^i)`. Code
//! 0 is 0. The signed code has its sign in bit 7 and up to 6 bits of fraction, the unsigned code up
//! to 7; the one pattern that is left over (the signed "−0", the unsigned 1) is 1.
//!
//! A second moment that is not zero never becomes zero, or the step would be divided by ε alone.

use super::BLOCK;

/// A code of all 256 bytes for values up to 1 in magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    /// From −0.993 to 1.
    Signed,
    /// From 0 to 1.
    Unsigned,
}

/// Blocks whose largest magnitude is below this are zero: its inverse would overflow.
pub(super) const LEAST_SCALE: f32 = 1e-37;

/// Blocks of values to and from codes: with every codec the same, to the bit.
pub(super) trait Codec: Copy + Send + Sync {
    /// The values of a block of codes.
    fn decode(self, code: Code, codes: &[u8], scale: f32, values: &mut [f32; BLOCK]);

    /// Codes a block of values and returns its scale.
    fn encode(self, code: Code, values: &[f32; BLOCK], codes: &mut [u8]) -> f32;
}

/// Loops that the compiler makes vector code of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl Codec for Plain {
    #[inline(always)]
    fn decode(self, code: Code, codes: &[u8], scale: f32, values: &mut [f32; BLOCK]) {
        match code {
            Code::Signed => Map::<true>::decode(codes, scale, values),
            Code::Unsigned => Map::<false>::decode(codes, scale, values),
        }
    }

    #[inline(always)]
    fn encode(self, code: Code, values: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        match code {
            Code::Signed => Map::<true>::encode(values, codes),
            Code::Unsigned => Map::<false>::encode(values, codes),
        }
    }
}

/// A code, known where its loops are compiled: each has its own constants.
pub(super) struct Map<const SIGNED: bool>;

impl<const SIGNED: bool> Map<SIGNED> {
    /// Bits of the longest fraction.
    pub(super) const MOST: u32 = if SIGNED { 6 } else { 7 };
    /// The pattern that stands for 1.
    pub(super) const ONE: u32 = if SIGNED { 0x80 } else { 1 };

    /// Up to here, half of the smallest value, magnitudes become 0.
    pub(super) const ZERO: f32 = if SIGNED { 0.275e-6 } else { 0.0 };
    /// From here, halfway between the largest fraction and 1, values become 1.
    pub(super) const TOP: f32 = 1.0 - 0.225 / (1 << Self::MOST) as f32;
    /// Above every place that a magnitude below 1 has.
    pub(super) const LAST: f32 = (2u32 << Self::MOST) as f32 - 0.5;

    #[inline(always)]
    fn value(code: u8) -> f32 {
        let code = u32::from(code);
        let pattern = if SIGNED { code & 0x7f } else { code };
        // The exponent of pattern + ½ is the number of fraction bits, its mantissa the fraction.
        let bits = (pattern as f32 + 0.5).to_bits();
        let places = (bits >> 23).wrapping_sub(127);
        let fraction = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000) - 1.0;
        let magnitude = (0.1 + 0.9 * fraction) * tenths(Self::MOST.wrapping_sub(places));
        let magnitude = if pattern == 0 { 0.0 } else { magnitude };
        let signed = if SIGNED && code > 0x80 { -magnitude } else { magnitude };
        if code == Self::ONE { 1.0 } else { signed }
    }

    /// The code whose value is nearest to `x`, for magnitudes up to 1.
    ///
    /// Within a decade of `i` bits the pattern is `⌊|x| · a + b⌋`. These lines meet where decades do, and
    /// each is flatter than the one before, so that the least of them is the decade's own: no comparison
    /// decides, and the loop over this is vector code.
    #[inline(always)]
    fn nearest(x: f32) -> u8 {
        let magnitude = x.abs();
        let first = Self::bits(0);
        let mut place = Self::LAST;
        for decade in 0..7 {
            let (a, b) = Self::line(decade);
            let on_line = magnitude * a + b;
            place = if on_line < place { on_line } else { place };
        }
        let whole = floor(place);
        // A decade's first cell is wider than the last one before it: up to a fifth of it, the value
        // before is nearer.
        let begins_decade = whole & whole.wrapping_sub(1) == 0;
        let pattern = if begins_decade { floor(place - 0.2) } else { whole };
        let pattern = pattern.max(1 << first);
        let sign = (x.to_bits() >> 24) & 0x80;
        let signed = if SIGNED { pattern | sign } else { pattern };
        let coded = if magnitude > Self::ZERO { signed } else { 0 };
        (if x >= Self::TOP { Self::ONE } else { coded }) as u8
    }

    /// Bits of the fraction in a decade, of which the smallest is decade 0.
    #[inline(always)]
    pub(super) const fn bits(decade: u32) -> u32 {
        if SIGNED { decade } else { decade + 1 }
    }

    /// `a = 10^(6 − decade) · 2^i / 0.9` and `b = 2^i · 8/9`.
    #[inline(always)]
    pub(super) const fn line(decade: u32) -> (f32, f32) {
        let cells = (1u32 << Self::bits(decade)) as f64;
        let scale = [1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1.0][decade as usize];
        ((scale * cells / 0.9) as f32, (cells * 8.0 / 9.0) as f32)
    }

    #[inline(always)]
    fn decode(codes: &[u8], scale: f32, values: &mut [f32; BLOCK]) {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = Self::value(*code) * scale;
        }
    }

    #[inline(always)]
    fn encode(values: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        let scale = largest_magnitude(values);
        let is_zero = scale < LEAST_SCALE;
        let inverse = if is_zero { 0.0 } else { 1.0 / scale };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = Self::nearest(*value * inverse);
        }
        if is_zero { 0.0 } else { scale }
    }
}

/// The whole number below `x`, which is at most 256: adding 2²³ rounds to a whole number, and half less
/// to the one below. At a whole number itself it may be either that or the one before, and the values
/// of both are equally near.
#[inline(always)]
fn floor(x: f32) -> u32 {
    ((x - 0.5) + 8_388_608.0).to_bits() & 0xff
}

/// `10^−n` for n up to 7, within two units in the last place; a division would take longer.
#[inline(always)]
pub(super) const fn tenths(n: u32) -> f32 {
    let ones = if n & 1 == 0 { 1.0 } else { 0.1 };
    let twos = if n & 2 == 0 { 1.0 } else { 0.01 };
    ones * twos * if n & 4 == 0 { 1.0 } else { 0.0001 }
}

/// Without their sign, floats are in the order of their bits, and what is not a number is above
/// all of them: it becomes the scale, and thus stays in the state.
#[inline(always)]
fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    f32::from_bits(values.iter().fold(0, |largest, x| magnitude(x).max(largest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(code: Code, byte: u8) -> f32 {
        if code == Code::Signed { Map::<true>::value(byte) } else { Map::<false>::value(byte) }
    }

    fn nearest(code: Code, x: f32) -> u8 {
        if code == Code::Signed { Map::<true>::nearest(x) } else { Map::<false>::nearest(x) }
    }

    /// The map as the paper's own implementation builds it: the middles of evenly divided decades.
    fn map(code: Code) -> Vec<f64> {
        let mut values = vec![0.0, 1.0];
        for decade in 0..7 {
            let cells = if code == Code::Signed { 1 << decade } else { 2 << decade };
            for cell in 0..cells {
                let middle = 0.1 + 0.9 * (f64::from(cell) + 0.5) / f64::from(cells);
                let value = middle * 10f64.powi(decade - 6);
                values.push(value);
                if code == Code::Signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        values
    }

    #[test]
    fn the_codes_stand_for_the_values_of_the_map() {
        for code in [Code::Signed, Code::Unsigned] {
            let mut values: Vec<f64> = (0..=255).map(|c| f64::from(value(code, c))).collect();
            values.sort_by(f64::total_cmp);
            let expected = map(code);
            assert_eq!(expected.len(), 256);
            for (value, expected) in values.iter().zip(expected) {
                assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{value} {expected}");
            }
        }
    }

    #[test]
    fn every_code_is_its_own_nearest() {
        for code in [Code::Signed, Code::Unsigned] {
            for byte in 0..=255u8 {
                assert_eq!(nearest(code, value(code, byte)), byte, "{code:?}");
            }
        }
    }

    #[test]
    fn the_nearest_value_is_found() {
        for code in [Code::Signed, Code::Unsigned] {
            let map = map(code);
            for i in 0..400_000i32 {
                let magnitude = 10f64.powf(-f64::from(i) / 50_000.0) as f32;
                let x = if code == Code::Signed && i % 2 == 1 { -magnitude } else { magnitude };
                let got = f64::from(value(code, nearest(code, x)));
                let x = f64::from(x);
                let distance = |value: &f64| (value - x).abs();
                let usable = |value: &&f64| code == Code::Signed || **value > 0.0;
                let least = map.iter().filter(usable).map(distance).fold(1.0, f64::min);
                assert!(distance(&got) <= least + 1e-6 * x.abs(), "{code:?} {x}: {got}");
            }
        }
    }

    #[test]
    fn a_block_keeps_its_largest_value_and_zeros() {
        let mut values = [0f32; BLOCK];
        values[3] = 7.5;
        values[200] = -7.4;
        values[201] = 1e-9;
        for (code, least) in [(Code::Signed, 0.0), (Code::Unsigned, 1e-7)] {
            if code == Code::Unsigned {
                values[200] = 7.4;
            }
            let (mut codes, mut back) = ([0u8; BLOCK], [9f32; BLOCK]);
            let scale = Plain.encode(code, &values, &mut codes);
            Plain.decode(code, &codes, scale, &mut back);
            assert_eq!((scale, back[3], back[0]), (7.5, 7.5, 0.0));
            assert!((back[200] - values[200]).abs() < 0.06);
            assert!(back[201] >= least);
        }
        let mut codes = [1u8; BLOCK];
        assert_eq!(Plain.encode(Code::Unsigned, &[0.0; BLOCK], &mut codes), 0.0);
        assert_eq!(codes, [0; BLOCK]);
        values[7] = f32::NAN;
        assert!(Plain.encode(Code::Signed, &values, &mut codes).is_nan());
    }
}
