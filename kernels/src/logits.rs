//! What a sampler asks of a row of logits: the best token, and sums of exponentials over a
//! vocabulary of any size.

use candle_core::{CpuStorage, DType, Result, Storage, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::cross_entropy as gpu;
use crate::device::to_host;
use crate::simd;

const LANES: usize = 16;
/// Exponentials that are summed in f32 before their sum is added in f64.
const RUN: usize = 512;

/// The most probable token of each row of `logits [rows, V]` and its log-probability in nats, as
/// [`most_probable`] and [`log_sum_exp`] have them. Logits of a GPU stay there.
pub fn most_probable_of_rows(logits: &Tensor) -> Result<Vec<(u32, f64)>> {
    let logits = logits.to_dtype(DType::F32)?;
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let found = gpu::most_probable(&logits)?;
        return Ok(found.into_iter().map(|(id, logprob)| (id, f64::from(logprob))).collect());
    }
    with_rows(&logits, |rows| {
        let of_row = |row: &&[f32]| {
            let id = most_probable(row);
            let logit = row.get(id).copied().unwrap_or(f32::NAN);
            (id as u32, f64::from(logit) - log_sum_exp(row))
        };
        Ok(rows.par_iter().map(of_row).collect())
    })
}

/// Calls `f` with the rows of `logits [rows, V]` in f32, which are copied where they are not on the CPU
/// in one piece.
pub fn with_rows<T, E: From<candle_core::Error>>(
    logits: &Tensor,
    f: impl FnOnce(&[&[f32]]) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let logits = logits.to_dtype(DType::F32)?;
    let (_, vocab_size) = logits.dims2()?;
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return crate::cuda::download::with_values(&logits.contiguous()?, |values| match values {
            Some(values) => f(&rows_of(values, vocab_size)),
            None => f(&rows_of(&to_host(&logits)?.flatten_all()?.to_vec1()?, vocab_size)),
        })?;
    }
    let logits = to_host(&logits)?.contiguous()?;
    let (storage, layout) = logits.storage_and_layout();
    let values = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => &values[start..end],
        _ => return Err(candle_core::Error::msg("logits in f32 on the CPU").into()),
    };
    f(&rows_of(values, vocab_size))
}

fn rows_of(values: &[f32], vocab_size: usize) -> Vec<&[f32]> {
    values.chunks_exact(vocab_size.max(1)).collect()
}

/// The first of the largest; 0 where there is none.
pub fn most_probable(logits: &[f32]) -> usize {
    let max = largest(logits);
    logits.iter().position(|logit| *logit == max).unwrap_or(0)
}

/// The largest; negative infinity where there is none.
pub fn largest(logits: &[f32]) -> f32 {
    simd::vectorized(
        #[inline(always)]
        || {
            let mut lanes = [f32::NEG_INFINITY; 4 * LANES];
            let (whole, rest) = logits.as_chunks::<{ 4 * LANES }>();
            let larger = |a: f32, b: f32| if b > a { b } else { a };
            for logits in whole {
                for (lane, logit) in lanes.iter_mut().zip(logits) {
                    *lane = larger(*lane, *logit);
                }
            }
            lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
        },
    )
}

/// `ln Σ exp`, each exponential in f32, within 1e-6 of the true value.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = largest(logits);
    let sum: f64 = sums_of_exp(logits, max, 1.0, RUN).into_iter().sum();
    f64::from(max) + sum.ln()
}

/// For each `block` of logits the sum of `exp((logit − max) · factor)`.
pub fn sums_of_exp(logits: &[f32], max: f32, factor: f32, block: usize) -> Vec<f64> {
    simd::vectorized(
        #[inline(always)]
        || {
            let mut sums = Vec::with_capacity(logits.len().div_ceil(block));
            for block in logits.chunks(block) {
                sums.push(sum_of_runs(block, max, factor));
            }
            sums
        },
    )
}

#[inline(always)]
fn sum_of_runs(logits: &[f32], max: f32, factor: f32) -> f64 {
    let mut sum = 0.0;
    for run in logits.chunks(RUN) {
        sum += f64::from(sum_of_exp(run, max, factor));
    }
    sum
}

#[inline(always)]
fn sum_of_exp(logits: &[f32], max: f32, factor: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for logits in whole {
        for (lane, logit) in lanes.iter_mut().zip(logits) {
            *lane += simd::exp((logit - max) * factor);
        }
    }
    for (lane, logit) in lanes.iter_mut().zip(rest) {
        *lane += simd::exp((logit - max) * factor);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_those_of_f64(logits in prop::collection::vec(-30f32..30.0, 1..3000)) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let wide = |logit: &f32| f64::from(*logit);
            let sum: f64 = logits.iter().map(|l| (wide(l) - f64::from(max)).exp()).sum();
            let expected = f64::from(max) + sum.ln();
            prop_assert!((log_sum_exp(&logits) - expected).abs() < 1e-6);
            prop_assert_eq!(largest(&logits), max);
            prop_assert_eq!(logits.iter().position(|l| *l == max), Some(most_probable(&logits)));
            let blocks = sums_of_exp(&logits, max, 0.5, 700);
            prop_assert_eq!(blocks.len(), logits.len().div_ceil(700));
            for (block, logits) in blocks.iter().zip(logits.chunks(700)) {
                let sum: f64 = logits.iter().map(|l| ((wide(l) - f64::from(max)) / 2.0).exp()).sum();
                prop_assert!((block / sum - 1.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn of_equal_logits_the_first_is_taken() {
        let mut logits = vec![0.0; 200];
        logits[70] = 2.0;
        logits[150] = 2.0;
        assert_eq!(most_probable(&logits), 70);
        assert_eq!(most_probable(&[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(most_probable(&[]), 0);
    }

    #[test]
    fn ruled_out_tokens_add_nothing() {
        let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
        assert!((log_sum_exp(&logits) - (1.0 + 2f64.ln())).abs() < 1e-6);
    }
}
