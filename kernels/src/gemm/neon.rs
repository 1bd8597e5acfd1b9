//! The NEON micro-kernel, of Apple's and other ARM CPUs of 64 bits: 6 × 16 by FMA; bf16 is widened to
//! f32 while it is packed.
#![expect(unsafe_code, reason = "vector loads and stores; each block says why it is in bounds")]

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vdupq_n_f32, vfmaq_lane_f32, vfmaq_laneq_f32, vld1_f32, vld1q_f32,
    vst1q_f32,
};

use half::bf16;

use super::kernel::Kernel;

const MR: usize = 6;
const NR: usize = 16;
/// Registers of a row of the tile, each with its own sums for every row.
const QUADS: usize = NR / 4;

/// Every CPU of this architecture has its instructions.
pub(crate) struct Neon;

impl Kernel<f32> for Neon {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: f32, _: Option<f32>) -> f32 {
        first
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        assert!(ldc >= NR && c.len() >= (MR - 1) * ldc + NR, "a tile of {MR} x {NR}");
        // SAFETY: `c` was checked.
        unsafe { tile(a, b, c, ldc, add) }
    }
}

impl Kernel<bf16> for Neon {
    const MR: usize = MR;
    const NR: usize = NR;
    const DEPTH: usize = 1;
    const STEPS: usize = 256;
    type Unit = f32;

    fn unit(first: bf16, _: Option<bf16>) -> f32 {
        first.to_f32()
    }

    fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
        <Self as Kernel<f32>>::tile(a, b, c, ldc, add);
    }
}

/// # Safety
/// `c` holds `MR` rows of `NR`, `ldc` apart.
#[target_feature(enable = "neon")]
unsafe fn tile(a: &[f32], b: &[f32], c: &mut [f32], ldc: usize, add: bool) {
    let mut sums: [[float32x4_t; MR]; QUADS] = [[vdupq_n_f32(0.0); MR]; QUADS];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        // SAFETY: `a` is 6 values long.
        let (four, two) = unsafe { (vld1q_f32(a.as_ptr()), vld1_f32(a.as_ptr().add(4))) };
        for (quad, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `b` is 16 values long.
            let b = unsafe { vld1q_f32(b.as_ptr().add(4 * quad)) };
            sums[0] = vfmaq_laneq_f32::<0>(sums[0], b, four);
            sums[1] = vfmaq_laneq_f32::<1>(sums[1], b, four);
            sums[2] = vfmaq_laneq_f32::<2>(sums[2], b, four);
            sums[3] = vfmaq_laneq_f32::<3>(sums[3], b, four);
            sums[4] = vfmaq_lane_f32::<0>(sums[4], b, two);
            sums[5] = vfmaq_lane_f32::<1>(sums[5], b, two);
        }
    }
    for (quad, sums) in sums.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let at = c.as_mut_ptr().add(i * ldc + 4 * quad);
                let sum = if add { vaddq_f32(vld1q_f32(at), *sum) } else { *sum };
                vst1q_f32(at, sum);
            }
        }
    }
}
