//! AdamW on the CPU: one pass over weights, moments and gradient, a block of 256 at a time.

use half::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::bytes::{Code, Codec};
use super::random::Random;
use super::{BLOCK, Coefficients};
use crate::cpu::Real;
use crate::simd;

/// Elements that one task works on: whole blocks.
pub(super) const TASK: usize = 1 << 14;

type Values = [f32; BLOCK];

/// Values that are read and written a block at a time, as f32.
///
/// What lies past the end of the last block is read as zero and not written.
pub(super) trait Blocks: Send + Sized {
    /// Cuts them into tasks of [`TASK`] elements.
    fn tasks(self) -> Vec<Self>;
    fn load(&self, block: usize, values: &mut Values);
    fn store(&mut self, block: usize, values: &Values);
}

/// A whole block is copied without looking at its length.
#[inline(always)]
pub(super) fn load<T: Real>(from: &[T], block: usize, values: &mut Values) {
    let from = &from[block * BLOCK..];
    if let Some(whole) = from.first_chunk::<BLOCK>() {
        values.iter_mut().zip(whole).for_each(|(value, x)| *value = x.wide());
    } else {
        values.fill(0.0);
        values.iter_mut().zip(from).for_each(|(value, x)| *value = x.wide());
    }
}

#[inline(always)]
fn store<T: Real>(to: &mut [T], block: usize, values: &[T; BLOCK]) {
    let to = &mut to[block * BLOCK..];
    if let Some(whole) = to.first_chunk_mut::<BLOCK>() {
        *whole = *values;
    } else {
        to.copy_from_slice(&values[..to.len()]);
    }
}

#[inline(always)]
fn narrow(values: &Values) -> [bf16; BLOCK] {
    let mut narrow = [bf16::ZERO; BLOCK];
    narrow.iter_mut().zip(values).for_each(|(narrow, x)| *narrow = simd::to_bf16(*x));
    narrow
}

/// Weights or moments in f32.
impl Blocks for &mut [f32] {
    fn tasks(self) -> Vec<Self> {
        self.chunks_mut(TASK).collect()
    }

    #[inline(always)]
    fn load(&self, block: usize, values: &mut Values) {
        load(self, block, values);
    }

    #[inline(always)]
    fn store(&mut self, block: usize, values: &Values) {
        store(self, block, values);
    }
}

/// f32 weights, and the parameter that is them rounded.
pub(super) struct Master<'a> {
    pub(super) master: &'a mut [f32],
    pub(super) param: &'a mut [bf16],
}

impl Blocks for Master<'_> {
    fn tasks(self) -> Vec<Self> {
        let tasks = self.master.chunks_mut(TASK).zip(self.param.chunks_mut(TASK));
        tasks.map(|(master, param)| Self { master, param }).collect()
    }

    #[inline(always)]
    fn load(&self, block: usize, values: &mut Values) {
        load(self.master, block, values);
    }

    #[inline(always)]
    fn store(&mut self, block: usize, values: &Values) {
        store(self.master, block, values);
        store(self.param, block, &narrow(values));
    }
}

/// bf16 weights that are rounded at random.
pub(super) struct Stochastic<'a> {
    pub(super) param: &'a mut [bf16],
    pub(super) random: Random,
    /// Blocks of the tensor before these.
    pub(super) before: usize,
}

impl Blocks for Stochastic<'_> {
    fn tasks(self) -> Vec<Self> {
        let Self { random, before, .. } = self;
        let tasks = self.param.chunks_mut(TASK).enumerate();
        let task = |(index, param)| Self { param, random, before: before + index * TASK / BLOCK };
        tasks.map(task).collect()
    }

    #[inline(always)]
    fn load(&self, block: usize, values: &mut Values) {
        load(self.param, block, values);
    }

    #[inline(always)]
    fn store(&mut self, block: usize, values: &Values) {
        store(self.param, block, &self.random.round(self.before + block, values));
    }
}

/// A moment in 8 bits.
pub(super) struct Bytes<'a, C> {
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [f32],
    pub(super) code: Code,
    pub(super) codec: C,
}

impl<C: Codec> Blocks for Bytes<'_, C> {
    fn tasks(self) -> Vec<Self> {
        let (code, codec) = (self.code, self.codec);
        let scales = self.scales.chunks_mut(TASK / BLOCK);
        let tasks = self.codes.chunks_mut(TASK).zip(scales);
        tasks.map(|(codes, scales)| Self { codes, scales, code, codec }).collect()
    }

    #[inline(always)]
    fn load(&self, block: usize, values: &mut Values) {
        let codes = &self.codes[block * BLOCK..];
        let scale = self.scales[block];
        if let Some(whole) = codes.first_chunk::<BLOCK>() {
            self.codec.decode(self.code, whole, scale, values);
        } else {
            values.fill(0.0);
            self.codec.decode(self.code, codes, scale, values);
        }
    }

    #[inline(always)]
    fn store(&mut self, block: usize, values: &Values) {
        let codes = &mut self.codes[block * BLOCK..];
        self.scales[block] = if let Some(whole) = codes.first_chunk_mut::<BLOCK>() {
            self.codec.encode(self.code, values, whole)
        } else {
            self.codec.encode(self.code, values, codes)
        };
    }
}

/// One step of everything along `grad`, all of the same number of elements.
pub(super) fn step<G: Real>(
    weights: impl Blocks,
    first: impl Blocks,
    second: impl Blocks,
    grad: &[G],
    coefficients: Coefficients,
) {
    let moments = first.tasks().into_par_iter().zip(second.tasks());
    let tasks = weights.tasks().into_par_iter().zip(moments).zip(grad.par_chunks(TASK));
    tasks.for_each(|((weights, (first, second)), grad)| {
        simd::dispatch(Task { weights, first, second, grad, coefficients });
    });
}

struct Task<'a, W, F, S, G> {
    weights: W,
    first: F,
    second: S,
    grad: &'a [G],
    coefficients: Coefficients,
}

impl<W: Blocks, F: Blocks, S: Blocks, G: Real> WithSimd for Task<'_, W, F, S, G> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(mut self, _: V) {
        let mut values = [[0f32; BLOCK]; 4];
        for block in 0..self.grad.len().div_ceil(BLOCK) {
            self.step_block(block, &mut values);
        }
    }
}

impl<W: Blocks, F: Blocks, S: Blocks, G: Real> Task<'_, W, F, S, G> {
    #[inline(always)]
    fn step_block(&mut self, block: usize, [p, m, v, g]: &mut [Values; 4]) {
        let c = self.coefficients;
        self.weights.load(block, p);
        self.first.load(block, m);
        self.second.load(block, v);
        load(self.grad, block, g);
        for (((p, m), v), g) in p.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(g) {
            let g = *g * c.grad_scale;
            *m = c.beta1 * *m + c.rest1 * g;
            *v = c.beta2 * *v + c.rest2 * (g * g);
            let denominator = v.sqrt() * c.inv_root_correction + c.eps;
            *p = *p * c.keep - c.step_size * (*m / denominator);
        }
        self.weights.store(block, p);
        self.first.store(block, m);
        self.second.store(block, v);
    }
}

/// Sum of the squares in f64: lanes within a task, then the tasks in their order.
pub(super) fn sum_of_squares<T: Real>(values: &[T]) -> f64 {
    let tasks: Vec<f64> =
        values.par_chunks(TASK).map(|task| simd::dispatch(Squares(task))).collect();
    tasks.iter().sum()
}

struct Squares<'a, T>(&'a [T]);

impl<T: Real> WithSimd for Squares<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<V: Simd>(self, _: V) -> f64 {
        let mut lanes = [0f64; 32];
        let (chunks, rest) = self.0.as_chunks::<32>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = f64::from(x.wide());
                *lane = x.mul_add(x, *lane);
            }
        }
        let square = |x: &T| f64::from(x.wide()) * f64::from(x.wide());
        lanes.iter().sum::<f64>() + rest.iter().map(square).sum::<f64>()
    }
}
