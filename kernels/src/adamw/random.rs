//! Random bits by place: Philox-4×32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3"), and the rounding that uses them.

use half::bf16;

use super::BLOCK;

/// Random bits for the elements of one tensor at one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Random {
    seed: u64,
    tensor: u32,
    step: u32,
}

/// Sixteen random bits for each of the 256 elements of a block, two to a word: word `w` of counter
/// `j` serves the elements `64·w + j` (low half) and `64·w + 32 + j` (high half).
type Bits = [[u32; COUNTERS]; 4];

/// Counters of a block: each gives four words, thus bits for eight elements.
const COUNTERS: usize = BLOCK / 8;

impl Random {
    /// The stream of this seed, tensor and step; the low 32 bits of tensor and step count.
    pub(super) fn new(seed: u64, tensor: u64, step: u64) -> Self {
        Self { seed, tensor: tensor as u32, step: step as u32 }
    }

    #[inline(always)]
    fn bits(self, block: usize) -> Bits {
        let mut bits = [[0; COUNTERS]; 4];
        let first = (block * COUNTERS) as u64;
        let [b0, b1, b2, b3] = &mut bits;
        for (j, (((b0, b1), b2), b3)) in b0.iter_mut().zip(b1).zip(b2).zip(b3).enumerate() {
            // A block's counters never carry into the high word: their number divides 2³².
            let low = (first as u32) + j as u32;
            let counter = [low, (first >> 32) as u32, self.tensor, self.step];
            [*b0, *b1, *b2, *b3] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        }
        bits
    }

    /// Rounds the elements of `block`, each up or down with the chances that make its expectation
    /// the value itself.
    #[inline(always)]
    pub(super) fn round(self, block: usize, values: &[f32; BLOCK]) -> [bf16; BLOCK] {
        let bits = self.bits(block);
        let mut rounded = [bf16::ZERO; BLOCK];
        let (halves, _) = rounded.as_chunks_mut::<COUNTERS>();
        let (values, _) = values.as_chunks::<COUNTERS>();
        for (half, (rounded, values)) in halves.iter_mut().zip(values).enumerate() {
            let shift = 16 * (half as u32 % 2);
            for ((rounded, x), word) in rounded.iter_mut().zip(values).zip(&bits[half / 2]) {
                *rounded = round(*x, (word >> shift) & 0xffff);
            }
        }
        rounded
    }
}

/// The neighbour of `x` away from zero where `x` is nearer to it than `bits / 2¹⁶` of the way,
/// else the one toward zero. What is not finite is rounded as ever.
#[inline(always)]
fn round(x: f32, bits: u32) -> bf16 {
    let moved = bf16::from_bits((x.to_bits().wrapping_add(bits) >> 16) as u16);
    if x.is_finite() { moved } else { crate::simd::to_bf16(x) }
}

#[inline(always)]
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        let (p, q) = (product(0xd251_1f53, counter[0]), product(0xcd9e_8d57, counter[2]));
        counter = [
            (q >> 32) as u32 ^ counter[1] ^ key[0],
            q as u32,
            (p >> 32) as u32 ^ counter[3] ^ key[1],
            p as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the paper's own implementation.
    #[test]
    fn philox_gives_the_known_answers() {
        let zero = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(philox([0; 4], [0; 2]), zero);
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let pi = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
        assert_eq!(philox(counter, [0xa409_3822, 0x299f_31d0]), pi);
    }

    /// The mean over many blocks is the value, to within four standard errors, and both
    /// neighbours occur as often as they should.
    #[test]
    fn rounding_is_unbiased() {
        for x in [1.001f32, -1.001, 1.9999, 3e-5, -0.7, 1e-40, 255.3] {
            let toward_zero = bf16::from_bits((x.to_bits() >> 16) as u16);
            let away = bf16::from_bits(toward_zero.to_bits() + 1);
            let (low, high) = (toward_zero.to_f64(), away.to_f64());
            let chance = (f64::from(x) - low) / (high - low);
            let blocks = 400;
            let ups: usize = (0..blocks)
                .flat_map(|block| Random::new(7, 3, 11).round(block, &[x; BLOCK]))
                .inspect(|y| assert!(*y == toward_zero || *y == away, "{x} became {y}"))
                .filter(|y| *y == away)
                .count();
            let count = (blocks * BLOCK) as f64;
            let error = (chance * (1.0 - chance) / count).sqrt();
            let got = ups as f64 / count;
            assert!((got - chance).abs() <= 4.0 * error, "{x}: {got} instead of {chance}");
        }
    }

    /// Bits of different places, steps, tensors and seeds agree in half of their positions.
    #[test]
    fn no_two_streams_are_alike() {
        let base = Random::new(7, 3, 11);
        let others = [Random::new(8, 3, 11), Random::new(7, 4, 11), Random::new(7, 3, 12)];
        let mut pairs: Vec<(Bits, Bits)> =
            others.iter().map(|other| (base.bits(0), other.bits(0))).collect();
        pairs.push((base.bits(0), base.bits(1)));
        pairs.push((base.bits(0), base.bits(1 << 27)));
        for (a, b) in pairs {
            let differ = |(a, b): (&u32, &u32)| (a ^ b).count_ones();
            let bits: u32 = a.as_flattened().iter().zip(b.as_flattened()).map(differ).sum();
            // 4096 bits: mean 2048, standard deviation 32.
            assert!((1900..2200).contains(&bits), "{bits} of 4096 bits differ");
        }
    }

    #[test]
    fn what_needs_no_rounding_stays_and_what_is_not_finite_too() {
        let mut values = [0f32; BLOCK];
        values[..6].copy_from_slice(&[1.5, -0.0, f32::INFINITY, f32::NEG_INFINITY, -2.0, f32::NAN]);
        let rounded = Random::new(1, 2, 3).round(5, &values);
        assert_eq!(rounded[..5].iter().map(|x| x.to_f32()).collect::<Vec<_>>(), values[..5]);
        assert!(rounded[1].is_sign_negative() && rounded[5].is_nan());
    }
}
