//! Which buffers a product takes, found without making it.

use candle_core::DType;
use half::bf16;

#[cfg(not(target_arch = "x86_64"))]
use super::Native;
use super::isa::{self, Isa};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512, multiplies_bf16_pairs, narrow};
use super::{blocking, deep, portable};
use crate::rehearsal::Rehearsal;

/// Takes the buffers of a product `[m, k] · [k, n]` of `dtype` into one of `out`, and gives them back.
/// `sums` says whether both sides lie by the rows that are summed over, as in the gradient of a weight.
pub(crate) fn rehearse(
    pool: &mut Rehearsal,
    size: [usize; 3],
    sums: bool,
    [dtype, out]: [DType; 2],
) {
    #[cfg(target_arch = "x86_64")]
    let by_long_side = dtype == DType::BF16
        && multiplies_bf16_pairs()
        && !size.contains(&0)
        && narrow::rehearse(pool, size, sums);
    #[cfg(not(target_arch = "x86_64"))]
    let (by_long_side, _) = (false, sums);
    match out {
        _ if by_long_side || size.contains(&0) => {}
        DType::BF16 if deep::is_deep::<bf16>(size[2]) => {
            deep::rehearse(pool, size, |pool, size| rehearse_packed(pool, size, dtype));
        }
        _ => rehearse_packed(pool, size, dtype),
    }
}

#[cfg(target_arch = "x86_64")]
fn rehearse_packed(pool: &mut Rehearsal, size: [usize; 3], dtype: DType) {
    match (dtype, isa::of_f32(), isa::of_bf16()) {
        (DType::F32, Isa::Portable | Isa::Neon, _) => {
            blocking::rehearse::<f32, portable::Portable>(pool, size);
        }
        (DType::F32, Isa::Avx2, _) => blocking::rehearse::<f32, avx2::Avx2>(pool, size),
        (DType::F32, ..) => blocking::rehearse::<f32, avx512::Avx512F32>(pool, size),
        (DType::BF16, _, Isa::Portable | Isa::Neon) => {
            blocking::rehearse::<bf16, portable::Portable>(pool, size);
        }
        (DType::BF16, _, Isa::Avx2) => blocking::rehearse::<bf16, avx2::Avx2>(pool, size),
        (DType::BF16, _, Isa::Avx512) => {
            blocking::rehearse::<bf16, avx512::Avx512Widened>(pool, size);
        }
        (DType::BF16, _, Isa::Avx512Bf16) => {
            blocking::rehearse::<bf16, avx512::Avx512Bf16>(pool, size);
        }
        (DType::BF16, _, Isa::AmxBf16) => amx::rehearse(pool, size),
        _ => {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn rehearse_packed(pool: &mut Rehearsal, size: [usize; 3], dtype: DType) {
    match (dtype, isa::of_f32()) {
        (DType::F32, Isa::Portable) => blocking::rehearse::<f32, portable::Portable>(pool, size),
        (DType::BF16, Isa::Portable) => blocking::rehearse::<bf16, portable::Portable>(pool, size),
        (DType::F32, _) => blocking::rehearse::<f32, Native>(pool, size),
        (DType::BF16, _) => blocking::rehearse::<bf16, Native>(pool, size),
        _ => {}
    }
}
