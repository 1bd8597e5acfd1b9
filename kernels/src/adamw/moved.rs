//! How far a step has moved a tensor, from what the step left behind: nobody keeps the weights from
//! before it.

use candle_core::{DType, Result, Tensor};
use half::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::bytes::{Code, Codec, Plain};
use super::cpu::{TASK, load};
use super::{BLOCK, Coefficients, Moments, Step};
use crate::cpu::{self as slices, Real};
use crate::profile::{self, Op};
use crate::simd;

/// Values that are added up side by side.
const LANES: usize = 32;

/// The size of a step and of the tensor that it has moved, as sums of squares.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moved {
    /// Of the weights after the step less those before it, weight decay included.
    pub update_squares: f64,
    /// Of the weights after the step; of master weights where there are some.
    pub weight_squares: f64,
}

impl std::ops::Add for Moved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            update_squares: self.update_squares + other.update_squares,
            weight_squares: self.weight_squares + other.weight_squares,
        }
    }
}

/// What each of `steps` did, once they are done; `None` on devices other than the CPU and NVIDIA's GPUs,
/// which are waited for. Gradients are not looked at. The sums have an order that no thread count
/// changes.
///
/// Weights that are rounded at random are taken to have moved as far as they would have without
/// the rounding. Moments of 8 bits are what is left of those that the step went by: the update's
/// norm is right to within a tenth.
pub fn moved_all(steps: &[Step]) -> Result<Vec<Option<Moved>>> {
    #[cfg(feature = "cuda")]
    if steps.iter().all(|step| step.weights.tensor().device().is_cuda()) {
        let _timer = profile::over(Op::Optimizer, 0, &[]);
        steps.iter().try_for_each(Step::check)?;
        return Ok(crate::cuda::adamw::moved_all(steps)?.into_iter().map(Some).collect());
    }
    steps.iter().map(moved).collect()
}

fn moved(step: &Step) -> Result<Option<Moved>> {
    let weight = step.weights.tensor();
    if !weight.device().is_cpu() {
        return Ok(None);
    }
    let _timer = profile::over(Op::Optimizer, 0, &[weight]).moving(step.moments.bytes());
    step.weights.check()?;
    step.moments.check(weight)?;
    let c = Coefficients::new(step.params);
    let moved = if weight.dtype() == DType::BF16 {
        slices::with([weight], |[weight]: [&[bf16]; 1]| with_moments(weight, step.moments, c))
    } else {
        slices::with([weight], |[weight]: [&[f32]; 1]| with_moments(weight, step.moments, c))
    };
    moved.map(Some)
}

fn with_moments<W: Real>(weights: &[W], moments: &Moments, c: Coefficients) -> Result<Moved> {
    match moments {
        Moments::F32 { first, second } => {
            slices::with([first, second], |[first, second]: [&[f32]; 2]| {
                Ok(sums(weights, Moment::F32(first), Moment::F32(second), c))
            })
        }
        Moments::Blockwise8 { first, first_scales, second, second_scales } => {
            with_bytes([first, second], [first_scales, second_scales], |first, second| {
                sums(weights, first, second, c)
            })
        }
    }
}

fn with_bytes(
    codes: [&Tensor; 2],
    scales: [&Tensor; 2],
    f: impl FnOnce(Moment, Moment) -> Moved,
) -> Result<Moved> {
    slices::with(codes, |codes: [&[u8]; 2]| {
        slices::with(scales, |scales: [&[f32]; 2]| {
            let moment = |at: usize, code| Moment::Bytes(codes[at], scales[at], code);
            Ok(f(moment(0, Code::Signed), moment(1, Code::Unsigned)))
        })
    })
}

/// A moment, to be read a block at a time.
#[derive(Clone, Copy)]
enum Moment<'a> {
    F32(&'a [f32]),
    /// Codes, and a scale for each block of them.
    Bytes(&'a [u8], &'a [f32], Code),
}

impl Moment<'_> {
    /// What lies past the end is zero.
    #[inline(always)]
    fn load(self, block: usize, values: &mut [f32; BLOCK]) {
        match self {
            Self::F32(all) => load(all, block, values),
            Self::Bytes(codes, scales, code) => {
                values.fill(0.0);
                let codes = &codes[block * BLOCK..];
                Plain.decode(code, &codes[..codes.len().min(BLOCK)], scales[block], values);
            }
        }
    }
}

fn sums<W: Real>(weights: &[W], first: Moment, second: Moment, c: Coefficients) -> Moved {
    let tasks = (0..weights.len().div_ceil(TASK)).into_par_iter();
    let task = |index| simd::dispatch(Task { weights, first, second, c, index });
    let of_tasks: Vec<Moved> = tasks.map(task).collect();
    of_tasks.into_iter().fold(Moved::default(), std::ops::Add::add)
}

struct Task<'a, W> {
    weights: &'a [W],
    first: Moment<'a>,
    second: Moment<'a>,
    c: Coefficients,
    index: usize,
}

impl<W: Real> WithSimd for Task<'_, W> {
    type Output = Moved;

    #[inline(always)]
    fn with_simd<V: Simd>(self, _: V) -> Moved {
        let blocks = TASK / BLOCK;
        let last = self.weights.len().div_ceil(BLOCK).min((self.index + 1) * blocks);
        let [mut updates, mut weights] = [[0f64; LANES]; 2];
        for block in self.index * blocks..last {
            self.add_block(block, &mut updates, &mut weights);
        }
        Moved { update_squares: updates.iter().sum(), weight_squares: weights.iter().sum() }
    }
}

impl<W: Real> Task<'_, W> {
    /// From `after = keep · before − step` follows `after − before = ((keep − 1) · after − step) / keep`.
    #[inline(always)]
    fn add_block(&self, block: usize, updates: &mut [f64; LANES], weights: &mut [f64; LANES]) {
        let c = self.c;
        let [mut p, mut m, mut v] = [[0f32; BLOCK]; 3];
        load(self.weights, block, &mut p);
        self.first.load(block, &mut m);
        self.second.load(block, &mut v);
        for (m, v) in m.iter_mut().zip(&v) {
            *m = c.step_size * (*m / (v.sqrt() * c.inv_root_correction + c.eps));
        }
        // Without ε, what lies past the end would be no number.
        m[(self.weights.len() - block * BLOCK).min(BLOCK)..].fill(0.0);
        let (decay, inverse) = (f64::from(c.keep) - 1.0, 1.0 / f64::from(c.keep));
        let (p, _) = p.as_chunks::<LANES>();
        let (steps, _) = m.as_chunks::<LANES>();
        for (p, steps) in p.iter().zip(steps) {
            let lanes = p.iter().zip(steps).zip(updates.iter_mut().zip(weights.iter_mut()));
            for ((p, step), (update, weight)) in lanes {
                let p = f64::from(*p);
                let moved = (decay * p - f64::from(*step)) * inverse;
                *update = moved.mul_add(moved, *update);
                *weight = p.mul_add(p, *weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::super::{Params, Weights, step, sum_of_squares};
    use super::*;
    use crate::check;

    const PARAMS: Params = Params {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 0.5,
    };

    fn moments(elements: usize, eight_bits: bool) -> Result<Moments> {
        if eight_bits {
            Moments::blockwise8_zeros(elements, &Device::Cpu)
        } else {
            Moments::f32_zeros(elements, &Device::Cpu)
        }
    }

    /// Three steps of each kind of weights, and what the last of them did: as it was told, and from
    /// the weights before and after it in f64. Those that are rounded at random are compared with
    /// f32 weights that begin where they do and take the same step.
    fn told_and_true(elements: usize, eight_bits: bool) -> Result<Vec<(Moved, Moved)>> {
        let x = check::random(&[&[elements], &[3, elements]], DType::F32)?;
        let start = x[0].to_dtype(DType::BF16)?;
        let (alone, master) = (start.to_dtype(DType::F32)?, start.to_dtype(DType::F32)?);
        let (param, stochastic) = (start.copy()?, start.copy()?);
        let weights = [
            Weights::F32(&alone),
            Weights::Master { master: &master, param: &param },
            Weights::Stochastic { param: &stochastic, seed: 5, tensor: 9 },
        ];
        let mut all = vec![];
        for weights in weights {
            let moments = moments(elements, eight_bits)?;
            for number in 1..=3 {
                let (params, grad) =
                    (Params { step: number, ..PARAMS }, x[1].get(number as usize - 1)?);
                let before = weights.tensor().to_dtype(DType::F32)?.copy()?;
                let (unrounded, theirs) = (before.copy()?, copy_of(&moments)?);
                step(weights, &moments, &grad, params)?;
                if number < 3 {
                    continue;
                }
                step(Weights::F32(&unrounded), &theirs, &grad, params)?;
                let apart = (unrounded.to_dtype(DType::F64)? - before.to_dtype(DType::F64)?)?;
                let expected = Moved {
                    update_squares: sum_of_squares(&apart)?,
                    weight_squares: sum_of_squares(&weights.tensor().to_dtype(DType::F64)?)?,
                };
                let told =
                    moved(&Step { weights, moments: &moments, grad: &grad, params, clip: None })?;
                all.push((told.expect("on the CPU"), expected));
            }
        }
        Ok(all)
    }

    fn copy_of(moments: &Moments) -> Result<Moments> {
        Ok(match moments {
            Moments::F32 { first, second } => {
                Moments::F32 { first: first.copy()?, second: second.copy()? }
            }
            Moments::Blockwise8 { first, first_scales, second, second_scales } => {
                Moments::Blockwise8 {
                    first: first.copy()?,
                    first_scales: first_scales.copy()?,
                    second: second.copy()?,
                    second_scales: second_scales.copy()?,
                }
            }
        })
    }

    /// How far each kind is told wrongly at most, relative to the norm.
    fn is_told_rightly(elements: usize) -> Result<()> {
        for (eight_bits, bound) in [(false, [1e-4, 1e-4, 2e-3]), (true, [0.1; 3])] {
            for ((told, expected), bound) in told_and_true(elements, eight_bits)?.iter().zip(bound)
            {
                let apart = |a: f64, b: f64| (a.sqrt() / b.sqrt() - 1.0).abs();
                let off = apart(told.update_squares, expected.update_squares);
                assert!(off < bound, "{off} of {bound}: {told:?} {expected:?} {eight_bits}");
                assert!(apart(told.weight_squares, expected.weight_squares) < 1e-12);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn every_kind_is_told_rightly_on_ragged_lengths(elements in 200usize..1500) {
            is_told_rightly(elements).expect("tensors of these shapes");
        }
    }

    #[test]
    fn every_kind_is_told_rightly_across_tasks() -> Result<()> {
        is_told_rightly(2 * TASK + 300)
    }

    #[test]
    fn it_is_told_in_the_same_bits_on_any_thread_count() -> Result<()> {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| told_and_true(5 * TASK + 77, true))
        };
        let told = |all: Vec<(Moved, Moved)>| -> Vec<[u64; 2]> {
            let bits = |told: Moved| [told.update_squares, told.weight_squares].map(f64::to_bits);
            all.into_iter().map(|(told, _)| bits(told)).collect()
        };
        assert_eq!(told(on(1)?), told(on(3)?));
        Ok(())
    }

    #[test]
    fn what_lies_past_the_end_counts_for_nothing_without_epsilon() -> Result<()> {
        let (weight, grad) = (
            Tensor::ones(3, DType::F32, &Device::Cpu)?,
            Tensor::ones(3, DType::F32, &Device::Cpu)?,
        );
        let (moments, params) = (moments(3, false)?, Params { eps: 0.0, ..PARAMS });
        step(Weights::F32(&weight), &moments, &grad, params)?;
        let told = moved(&Step {
            weights: Weights::F32(&weight),
            moments: &moments,
            grad: &grad,
            params,
            clip: None,
        })?;
        let expected = 3.0 * (PARAMS.lr * (1.0 + PARAMS.weight_decay)).powi(2);
        let found = told.expect("on the CPU").update_squares;
        assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
        Ok(())
    }
}
