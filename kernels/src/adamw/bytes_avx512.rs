//! Moments in 8 bits with AVX-512: what the plain loops compute, to the bit, in less than half of the
//! instructions. What they work out for each value (a power of ten, the least of seven lines) is here
//! looked up in registers by the value's exponent.

use std::arch::x86_64::{__m128i, __m512, __m512i};

use pulp::{cast, x86::V4};

use super::BLOCK;
use super::bytes::{Code, Codec, LEAST_SCALE, Map, tenths};

/// Values of a register.
const LANES: usize = 16;

const MAGNITUDE: i32 = 0x7fff_ffff;
const MANTISSA: i32 = 0x007f_ffff;
const ONE: i32 = 0x3f80_0000;
/// The bits of 2²³.
const SHIFT: i32 = 0x4b00_0000;

/// Comparisons that are false where one side is not a number.
const LESS: i32 = 0x11;
const NOT_LESS: i32 = 0x1d;

/// Codes with the instructions whose presence the token vouches for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(pub(super) V4);

impl Codec for Avx512 {
    #[inline(always)]
    fn decode(self, code: Code, codes: &[u8], scale: f32, values: &mut [f32; BLOCK]) {
        match code {
            Code::Signed => self.decode_all::<true>(codes, scale, values),
            Code::Unsigned => self.decode_all::<false>(codes, scale, values),
        }
    }

    #[inline(always)]
    fn encode(self, code: Code, values: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        match code {
            Code::Signed => self.encode_all::<true>(values, codes),
            Code::Unsigned => self.encode_all::<false>(values, codes),
        }
    }
}

impl Avx512 {
    #[inline(always)]
    fn decode_all<const SIGNED: bool>(self, codes: &[u8], scale: f32, values: &mut [f32; BLOCK]) {
        let scale = self.0.avx512f._mm512_set1_ps(scale);
        let (all, rest) = codes.as_chunks::<LANES>();
        let (values, _) = values.as_chunks_mut::<LANES>();
        for (values, codes) in values.iter_mut().zip(all) {
            *values = self.values::<SIGNED>(codes, scale);
        }
        if !rest.is_empty() {
            let mut padded = [0; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            let last = self.values::<SIGNED>(&padded, scale);
            values[all.len()][..rest.len()].copy_from_slice(&last[..rest.len()]);
        }
    }

    #[inline(always)]
    fn values<const SIGNED: bool>(self, codes: &[u8; LANES], scale: __m512) -> [f32; LANES] {
        let v = self.0.avx512f;
        let code = v._mm512_cvtepu8_epi32(cast::<_, __m128i>(*codes));
        let pattern = if SIGNED { v._mm512_and_si512(code, self.ints(0x7f)) } else { code };
        let shifted = v._mm512_add_ps(v._mm512_cvtepi32_ps(pattern), self.floats(0.5));
        let bits: __m512i = cast(shifted);
        // Of the exponent, the last four bits find the power of ten.
        let power =
            v._mm512_permutexvar_ps(v._mm512_srli_epi32::<23>(bits), cast(Map::<SIGNED>::POWERS));
        let mantissa = v._mm512_and_si512(bits, self.ints(MANTISSA));
        let fraction = cast(v._mm512_or_si512(mantissa, self.ints(ONE)));
        let fraction = v._mm512_sub_ps(fraction, self.floats(1.0));
        let part = v._mm512_add_ps(self.floats(0.1), v._mm512_mul_ps(self.floats(0.9), fraction));
        let magnitude = v._mm512_mul_ps(part, power);
        let not_zero = v._mm512_test_epi32_mask(pattern, pattern);
        let magnitude: __m512i = cast(v._mm512_maskz_mov_ps(not_zero, magnitude));
        let value = if SIGNED {
            // Bit 7 becomes the sign. The zero that would be negative is the code of 1.
            let sign = v._mm512_slli_epi32::<24>(v._mm512_andnot_si512(self.ints(0x7f), code));
            v._mm512_or_si512(magnitude, sign)
        } else {
            magnitude
        };
        let one = v._mm512_cmpeq_epi32_mask(code, self.ints(Map::<SIGNED>::ONE as i32));
        let value = v._mm512_mask_mov_ps(cast(value), one, self.floats(1.0));
        cast(v._mm512_mul_ps(value, scale))
    }

    #[inline(always)]
    fn encode_all<const SIGNED: bool>(self, values: &[f32; BLOCK], codes: &mut [u8]) -> f32 {
        let (values, _) = values.as_chunks::<LANES>();
        let scale = self.largest_magnitude(values);
        let is_zero = scale < LEAST_SCALE;
        let inverse = self.floats(if is_zero { 0.0 } else { 1.0 / scale });
        let (all, rest) = codes.as_chunks_mut::<LANES>();
        for (codes, values) in all.iter_mut().zip(values) {
            *codes = self.nearest::<SIGNED>(values, inverse);
        }
        if !rest.is_empty() {
            let last = self.nearest::<SIGNED>(&values[all.len()], inverse);
            rest.copy_from_slice(&last[..rest.len()]);
        }
        if is_zero { 0.0 } else { scale }
    }

    #[inline(always)]
    fn nearest<const SIGNED: bool>(self, values: &[f32; LANES], inverse: __m512) -> [u8; LANES] {
        let v = self.0.avx512f;
        let x = v._mm512_mul_ps(cast(*values), inverse);
        let magnitude = v._mm512_and_si512(cast(x), self.ints(MAGNITUDE));
        // Of an exponent that is at least 96, the last five bits find the lines.
        let exponent = v._mm512_srli_epi32::<23>(magnitude);
        let exponent = v._mm512_max_epi32(exponent, self.ints(96));
        let magnitude: __m512 = cast(magnitude);
        let line = |[a, b]: &[[f32; 32]; 2]| {
            let [a, b] = [a, b].map(|table| {
                let (halves, _) = table.as_chunks::<LANES>();
                v._mm512_permutex2var_ps(cast(halves[0]), exponent, cast(halves[1]))
            });
            v._mm512_add_ps(v._mm512_mul_ps(magnitude, a), b)
        };
        let place = self.floats(Map::<SIGNED>::LAST);
        // The smaller one, or `place` where one is not a number.
        let place = v._mm512_min_ps(line(&Map::<SIGNED>::LOWER), place);
        let place = v._mm512_min_ps(line(&Map::<SIGNED>::UPPER), place);
        // Floors as the plain ones, in the low byte of floats that have a unit of 1.
        let (half, shift) = (self.floats(0.5), self.floats(8_388_608.0));
        let floor = v._mm512_add_ps(v._mm512_sub_ps(place, half), shift);
        // A power of two has no bit in common with what is one less.
        let whole = v._mm512_and_si512(cast(floor), self.ints(0xff));
        let less = v._mm512_sub_epi32(whole, self.ints(1));
        let begins_decade = v._mm512_testn_epi32_mask(whole, less);
        let before = v._mm512_sub_ps(v._mm512_sub_ps(place, self.floats(0.2)), half);
        let floor = v._mm512_mask_add_ps(floor, begins_decade, before, shift);
        // A float with a unit of 1 has the bits of its integer.
        let first = self.ints(SHIFT + (1 << Map::<SIGNED>::bits(0)));
        let pattern = v._mm512_max_epi32(cast(floor), first);
        let pattern = if SIGNED {
            let sign = v._mm512_srli_epi32::<24>(cast(x));
            v._mm512_or_si512(pattern, v._mm512_and_si512(sign, self.ints(0x80)))
        } else {
            pattern
        };
        let zero = self.floats(Map::<SIGNED>::ZERO);
        let coded =
            v._mm512_maskz_mov_epi32(v._mm512_cmp_ps_mask::<LESS>(zero, magnitude), pattern);
        let top = v._mm512_cmp_ps_mask::<NOT_LESS>(x, self.floats(Map::<SIGNED>::TOP));
        let one = self.ints(Map::<SIGNED>::ONE as i32);
        cast(v._mm512_cvtepi32_epi8(v._mm512_mask_mov_epi32(coded, top, one)))
    }

    #[inline(always)]
    fn largest_magnitude(self, values: &[[f32; LANES]]) -> f32 {
        let v = self.0.avx512f;
        let largest = values.iter().fold(self.ints(0), |largest, values| {
            v._mm512_max_epi32(largest, v._mm512_and_si512(cast(*values), self.ints(MAGNITUDE)))
        });
        f32::from_bits(v._mm512_reduce_max_epi32(largest) as u32)
    }

    #[inline(always)]
    fn ints(self, x: i32) -> __m512i {
        self.0.avx512f._mm512_set1_epi32(x)
    }

    #[inline(always)]
    fn floats(self, x: f32) -> __m512 {
        self.0.avx512f._mm512_set1_ps(x)
    }
}

/// Tables in registers.
impl<const SIGNED: bool> Map<SIGNED> {
    /// The power of ten by which a fraction of so many places is multiplied, at the last four bits of
    /// the exponent of pattern + ½: 127 and the places.
    const POWERS: [f32; LANES] = {
        let mut powers = [0.0; LANES];
        let mut places = 0;
        while places <= Self::MOST {
            powers[((127 + places) % 16) as usize] = tenths(Self::MOST - places);
            places += 1;
        }
        powers
    };

    /// `a` and `b` of the line of the decade that a binade begins in, for exponents from 96 to 127.
    const LOWER: [[f32; 32]; 2] = Self::lines(0);

    /// And of the decade that it ends in, which is that one or the next.
    const UPPER: [[f32; 32]; 2] = Self::lines(1);

    const fn lines(binades_above: i32) -> [[f32; 32]; 2] {
        let mut lines = [[0.0; 32]; 2];
        let mut index = 0;
        while index < 32 {
            let mut begins = 1.0;
            let mut below_one = index as i32 + binades_above;
            while below_one < 31 {
                begins /= 2.0;
                below_one += 1;
            }
            let (a, b) = Self::line(decade(begins));
            lines[0][index] = a;
            lines[1][index] = b;
            index += 1;
        }
        lines
    }
}

/// The decade that `x` is in: the first reaches down to 0, the last begins at 0.1.
const fn decade(x: f64) -> u32 {
    let mut decade = 6;
    let mut begins = 0.1;
    while decade > 0 && x < begins {
        begins /= 10.0;
        decade -= 1;
    }
    decade
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::super::bytes::Plain;
    use super::*;

    const CODES: [Code; 2] = [Code::Signed, Code::Unsigned];

    /// Says so where the CPU has none.
    fn codec() -> Option<Avx512> {
        let codec = V4::try_new().map(Avx512);
        if codec.is_none() {
            // Not by `eprintln!`, which the test harness keeps to itself.
            let line = b"SKIPPED: no AVX-512 here, so its codes are not tested\n";
            std::io::stderr().write_all(line).expect("standard error is open");
        }
        codec
    }

    fn encoded(codec: impl Codec, code: Code, values: &[f32; BLOCK], len: usize) -> (u32, Vec<u8>) {
        let mut codes = vec![7; len];
        (codec.encode(code, values, &mut codes).to_bits(), codes)
    }

    fn decoded(codec: impl Codec, code: Code, codes: &[u8], scale: f32) -> Vec<u32> {
        let mut values = [3.0; BLOCK];
        codec.decode(code, codes, scale, &mut values);
        values.map(f32::to_bits).to_vec()
    }

    #[test]
    fn every_code_has_the_same_value() {
        let Some(codec) = codec() else { return };
        let codes: Vec<u8> = (0..=255).collect();
        for (code, len) in [(CODES[0], 256), (CODES[1], 256), (CODES[0], 131), (CODES[1], 7)] {
            let of = |scale| decoded(codec, code, &codes[..len], scale);
            for scale in [1.0, 0.37, 3e-20, 0.0] {
                assert_eq!(of(scale), decoded(Plain, code, &codes[..len], scale), "{code:?}");
            }
        }
    }

    /// A thousand magnitudes in every binade from 1 down, and what is next to where decades meet.
    #[test]
    fn every_magnitude_has_the_same_code() {
        let Some(codec) = codec() else { return };
        let mut magnitudes = vec![0.0, 1.0, f32::MIN_POSITIVE, 1e-40];
        for exponent in 80..127u32 {
            magnitudes.extend((0..1000).map(|i| f32::from_bits((exponent << 23) + i * 8388 + 17)));
        }
        for decade in 0..8 {
            let middle = 10f32.powi(-decade).to_bits();
            magnitudes.extend((0..4001).map(|i| f32::from_bits(middle - 2000 + i).min(1.0)));
        }
        for magnitudes in magnitudes.chunks(BLOCK - 1) {
            // The first value keeps the scale at 1.
            let mut values = [1.0; BLOCK];
            values[1..=magnitudes.len()].copy_from_slice(magnitudes);
            for code in CODES {
                let same = |values: &[f32; BLOCK]| {
                    encoded(codec, code, values, BLOCK) == encoded(Plain, code, values, BLOCK)
                };
                assert!(same(&values), "{code:?} of {values:?}");
                assert!(code == Code::Unsigned || same(&values.map(|x| -x)), "-{values:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_of_any_values_have_the_same_codes(
            values in prop::array::uniform32(-1e3f32..1e3),
            least in 1e-12f32..1.0,
            len in 1usize..=BLOCK,
            odd in prop::sample::select(vec![0.0, f32::NAN, f32::INFINITY, 1e-39, 1.0]),
        ) {
            let Some(codec) = codec() else { return Ok(()) };
            let mut block = [0.0; BLOCK];
            for (i, x) in block.iter_mut().enumerate() {
                *x = values[i % 32] * least.powf(i as f32 / BLOCK as f32);
            }
            block[len / 2] = odd;
            for code in CODES {
                let block = if code == Code::Signed { block } else { block.map(f32::abs) };
                let (scale, codes) = encoded(codec, code, &block, len);
                prop_assert_eq!(&(scale, codes.clone()), &encoded(Plain, code, &block, len));
                let scale = f32::from_bits(scale);
                let (fast, plain) =
                    (decoded(codec, code, &codes, scale), decoded(Plain, code, &codes, scale));
                let number = |bits: &u32| !f32::from_bits(*bits).is_nan();
                let differ = fast.iter().zip(&plain).any(|(a, b)| a != b && number(a) | number(b));
                prop_assert!(!differ, "{:?} {:?}", fast, plain);
            }
        }
    }
}
