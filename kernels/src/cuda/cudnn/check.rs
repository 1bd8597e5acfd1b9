//! A plan is compared with chandler's own kernels before it is used: on a few tokens, once.
//!
//! What it must not count on is no number meanwhile: its workspace, its results, and the rows behind its
//! documents, which are other documents' or other tensors' when it is used.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::super::attention::{self, Inputs};
use super::super::launch::{NO_NUMBER, fill};
use super::super::upload::upload;
use super::graph::{Pass, Shape};
use super::run::Run;
use super::share::end_to_end;
use crate::attention::Params;
use crate::device::to_host;

/// Tokens of the documents of a comparison: more than a tile of any kernel, and less.
const LENGTHS: [usize; 2] = [190, 67];
/// Rows behind them, which are nobody's: as many as the last tile of a kernel has of them.
const BEHIND: usize = 64;
/// A window and a cap that documents of these lengths notice.
const WINDOW: usize = 50;
const SOFTCAP: f64 = 1.0;
/// Probabilities and results are rounded to bf16 on both sides, relative to the largest value.
const NARROW: f32 = 2e-2;
/// Sums of exponentials of f32.
const WIDE: f32 = 1e-3;

/// Bytes that a comparison takes beside the plan's workspace, at most.
pub(crate) fn bytes([heads, kv_heads, dim]: [usize; 3]) -> usize {
    let tokens = LENGTHS.iter().sum::<usize>() + BEHIND;
    // q, dy, y, and three times dq; k, v, and three times dk and dv; two numbers a row, and two more.
    tokens * (2 * dim * (6 * heads + 8 * kv_heads) + 4 * 4 * heads)
}

/// What is other than it should be; `None` where nothing is.
pub(super) fn complaint(
    run: &Run,
    shape: &Shape,
    scale: f64,
    device: &Device,
) -> Result<Option<String>> {
    let params = Params {
        scale,
        softcap: shape.has_softcap.then_some(SOFTCAP),
        window: shape.has_window.then_some(WINDOW),
    };
    let lengths = &LENGTHS[..shape.documents.min(LENGTHS.len())];
    let documents = end_to_end(lengths);
    let tokens = lengths.iter().sum();
    let noise = |seed, heads, scale| noise(seed, [tokens, heads, shape.dim], scale, device);
    let no_numbers = |tensor: &Tensor| fill(tensor, NO_NUMBER);
    let nobodys = |tensor: &Tensor| no_numbers(&tensor.narrow(0, tokens, BEHIND)?);
    let q = noise(1, shape.heads, 3.0)?;
    let (k, v) = (noise(2, shape.kv_heads, 1.0)?, noise(3, shape.kv_heads, 1.0)?);
    let inputs = Inputs::new(&q, &k, &v, 0, params)?;
    let (y, lse) = attention::own_forward(&inputs, &documents)?;
    [&y, &lse].into_iter().try_for_each(nobodys)?;
    match shape.pass {
        Pass::Forward => {
            let [once, again] = [inputs.outputs()?, inputs.outputs()?];
            for (y, lse) in [&once, &again] {
                [y, lse].into_iter().try_for_each(no_numbers)?;
                run.forward(&inputs, &documents, params, [y, lse])?;
            }
            let found = [("output", &once.0, &y, NARROW), ("log-sum-exp", &once.1, &lse, WIDE)];
            first_of(&found, &[(&once.0, &again.0), (&once.1, &again.1)], tokens)
        }
        Pass::Backward => {
            let dy = noise(4, shape.heads, 1.0)?;
            let delta = attention::delta(&dy, &y)?;
            let own = attention::own_backward(&inputs, &dy, &documents, [&lse, &delta])?;
            let [once, again] = [inputs.gradients()?, inputs.gradients()?];
            for [dq, dk, dv] in [&once, &again] {
                [dq, dk, dv].into_iter().try_for_each(no_numbers)?;
                run.backward(&inputs, &dy, &documents, params, [&y, &lse], [dq, dk, dv])?;
            }
            let names = ["gradient of q", "gradient of k", "gradient of v"];
            let found: Vec<_> = (0..3).map(|i| (names[i], &once[i], &own[i], NARROW)).collect();
            first_of(&found, &once.iter().zip(&again).collect::<Vec<_>>(), tokens)
        }
    }
}

/// The first result of so many tokens that is too far from what it should be, or other than the one before,
/// or goes on behind them.
fn first_of(
    found: &[(&str, &Tensor, &Tensor, f32)],
    twice: &[(&Tensor, &Tensor)],
    tokens: usize,
) -> Result<Option<String>> {
    let values = |tensor: &Tensor| values(&tensor.narrow(0, 0, tokens)?);
    for (what, found, expected, bound) in found {
        let behind = self::values(&found.narrow(0, tokens, BEHIND)?)?;
        if behind.iter().any(|value| !value.is_nan()) {
            return Ok(Some(format!("its {what} goes on behind the last document")));
        }
        let (found, expected) = (values(found)?, values(expected)?);
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        let apart = |(a, b): (&f32, &f32)| (a - b).abs();
        let error = found.iter().zip(&expected).map(apart).fold(0f32, f32::max);
        // Not a number is not within anything.
        let is_close = error <= bound * largest && found.iter().all(|value| value.is_finite());
        if !is_close {
            return Ok(Some(format!(
                "its {what} is {error:e} off where the largest is {largest:e}"
            )));
        }
    }
    for ((a, b), (what, ..)) in twice.iter().zip(found) {
        if values(a)?.iter().zip(values(b)?).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Ok(Some(format!("its {what} is another one the second time")));
        }
    }
    Ok(None)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    to_host(tensor)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Numbers up to `scale` without a pattern, the same for the same seed, and no numbers in the rows behind.
fn noise(
    seed: u64,
    [tokens, heads, dim]: [usize; 3],
    scale: f32,
    device: &Device,
) -> Result<Tensor> {
    let number = |index: usize| {
        let mut x = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 40);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bf16::from_f32(scale * ((x >> 40) as f32 / (1u32 << 23) as f32 - 1.0))
    };
    let mut values: Vec<bf16> = (0..tokens * heads * dim).map(number).collect();
    values.resize((tokens + BEHIND) * heads * dim, bf16::NAN);
    upload(&values, (tokens + BEHIND, heads, dim), device)
}
