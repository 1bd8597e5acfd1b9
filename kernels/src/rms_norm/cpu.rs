//! Row by row on the CPU: a row is read from memory once and stays in the inner cache.

use candle_core::{DType, Result, Tensor};
use pulp::{Simd, WithSimd};

use super::Params;
use super::sums::{Row, backward_sums, inv_rms, specialised};
use crate::cpu::{self, Real};
use crate::elementwise::add_slices;
use crate::fresh::fresh;
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;
use crate::{simd, tasks};

/// Rows whose weight gradients are added up before those of other rows are added: so many that the
/// partial sums are small beside the rows.
const CHUNK: usize = 64;

/// What the normed input is multiplied by, `[E]`.
pub(crate) fn factor(weight: &Tensor, params: Params) -> Result<Vec<f32>> {
    let offset = if params.unit_offset { 1.0 } else { 0.0 };
    cpu::with([&weight.to_dtype(DType::F32)?], |[weight]: [&[f32]; 1]| {
        Ok(weight.iter().map(|w| w + offset).collect())
    })
}

pub(super) fn forward<T: Row>(x: &Tensor, weight: &Tensor, params: Params) -> Result<Tensor> {
    let factor = factor(weight, params)?;
    let width = factor.len();
    cpu::with([x], |[values]: [&[T]; 1]| {
        let mut y = fresh::<T>(values.len())?;
        tasks::rows(width, [&mut y], |first, [y]| {
            let x = &values[first * width..][..y.len()];
            simd::dispatch(Forward { x, factor: &factor, eps: params.eps as f32, y });
        });
        cpu::tensor(y, x.shape())
    })
}

/// `x + added`, and its norm.
pub(super) fn forward_add<T: Row>(
    [x, added]: [&Tensor; 2],
    weight: &Tensor,
    params: Params,
) -> Result<[Tensor; 2]> {
    let factor = factor(weight, params)?;
    let width = factor.len();
    let shape = x.shape();
    cpu::with([x, added], |[x, added]: [&[T]; 2]| {
        let (mut sum, mut y) = (fresh::<T>(x.len())?, fresh::<T>(x.len())?);
        tasks::rows(width, [&mut sum, &mut y], |first, [sum, y]| {
            let range = first * width..first * width + y.len();
            let (x, added) = (&x[range.clone()], &added[range]);
            simd::vectorized(
                #[inline(always)]
                || add_slices(x, added, sum),
            );
            simd::dispatch(Forward { x: sum, factor: &factor, eps: params.eps as f32, y });
        });
        Ok([cpu::tensor(sum, shape)?, cpu::tensor(y, shape)?])
    })
}

/// Rows of `factor.len()`.
struct Forward<'a, T> {
    x: &'a [T],
    factor: &'a [f32],
    eps: f32,
    y: &'a mut [T],
}

impl<T: Row> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        specialised!(self.factor.len(), |width| self.rows(simd, width));
    }
}

impl<T: Row> Forward<'_, T> {
    #[inline(always)]
    fn rows<S: Simd>(self, simd: S, width: usize) {
        let factor = &self.factor[..width];
        let mut wide_x = Scratch::<f32>::new(width);
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let x = T::widened(x, &mut wide_x[..width]);
            scale(x, factor, inv_rms(simd, x, self.eps), y);
        }
    }
}

#[inline(always)]
pub(crate) fn scale<T: Real>(x: &[f32], factor: &[f32], inv_rms: f32, y: &mut [T]) {
    for ((y, x), factor) in y.iter_mut().zip(x).zip(factor) {
        *y = T::narrow(x * inv_rms * factor);
    }
}

/// `residual` is added to `dx` where `adds` says so.
pub(super) fn backward<T: Row>(
    x: &Tensor,
    weight: &Tensor,
    params: Params,
    [dy, residual]: [&Tensor; 2],
    adds: bool,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let factor = &factor(weight, params)?[..];
    cpu::with([x, dy, residual], |[values, dy, residual]: [&[T]; 3]| {
        let mut dx = fresh::<T>(values.len())?;
        let mut chunks = Chunks::new(values.len(), factor.len(), wants_weight);
        chunks.each(&mut dx, |range, dx, dw| {
            let (x, dy) = (&values[range.clone()], &dy[range.clone()]);
            let residual = if adds { &residual[range] } else { &[] };
            let eps = params.eps as f32;
            simd::dispatch(Backward { x, factor, dy, residual, eps, dx, dw });
        });
        Ok((cpu::tensor(dx, x.shape())?, chunks.sum()?))
    })
}

/// Rows of `factor.len()`; `residual` and `dw` are empty where nothing is to be added, or no
/// gradient wanted.
struct Backward<'a, T> {
    x: &'a [T],
    factor: &'a [f32],
    dy: &'a [T],
    residual: &'a [T],
    eps: f32,
    dx: &'a mut [T],
    dw: &'a mut [f32],
}

impl<T: Row> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        specialised!(self.factor.len(), |width| self.rows(simd, width));
    }
}

impl<T: Row> Backward<'_, T> {
    #[inline(always)]
    fn rows<S: Simd>(self, simd: S, width: usize) {
        let Self { x, factor, dy, residual, eps, dx, dw } = self;
        let factor = &factor[..width];
        let [mut wide_x, mut wide_dy] = [Scratch::<f32>::new(width), Scratch::<f32>::new(width)];
        for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
            let x = T::widened(&x[row * width..][..width], &mut wide_x[..width]);
            let dy = T::widened(&dy[row * width..][..width], &mut wide_dy[..width]);
            let (inv_rms, products) = backward_sums(simd, x, factor, dy, eps);
            let along = products * inv_rms * inv_rms * inv_rms / width as f32;
            if residual.is_empty() {
                input_gradient(x, factor, dy, [inv_rms, along], dx);
            } else {
                let residual = &residual[row * width..][..width];
                input_gradient_added(x, factor, dy, residual, [inv_rms, along], dx);
            }
            if !dw.is_empty() {
                weight_gradient(x, dy, inv_rms, &mut dw[..width]);
            }
        }
    }
}

#[inline(always)]
pub(crate) fn weight_gradient(x: &[f32], dy: &[f32], inv_rms: f32, dw: &mut [f32]) {
    for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
        *dw = (dy * inv_rms).mul_add(*x, *dw);
    }
}

#[inline(always)]
pub(crate) fn input_gradient<T: Real>(
    x: &[f32],
    factor: &[f32],
    dy: &[f32],
    [inv_rms, along]: [f32; 2],
    dx: &mut [T],
) {
    for (((dx, x), factor), dy) in dx.iter_mut().zip(x).zip(factor).zip(dy) {
        *dx = T::narrow((-along).mul_add(*x, dy * factor * inv_rms));
    }
}

#[inline(always)]
fn input_gradient_added<T: Real>(
    x: &[f32],
    factor: &[f32],
    dy: &[f32],
    residual: &[T],
    [inv_rms, along]: [f32; 2],
    dx: &mut [T],
) {
    let rows = dx.iter_mut().zip(x).zip(factor).zip(dy).zip(residual);
    for ((((dx, x), factor), dy), residual) in rows {
        let g = (dy * factor).mul_add(inv_rms, residual.wide());
        *dx = T::narrow((-along).mul_add(*x, g));
    }
}

/// Takes the buffers of [`forward`] over `rows` of `width`, and gives them back.
pub(crate) fn rehearse_forward(pool: &mut Rehearsal, [rows, width]: [usize; 2]) {
    let tasks = pool.at_a_time(rows.div_ceil(tasks::rows_of_a_task(width)));
    let taken: Vec<_> = (0..tasks).map(|_| pool.take::<f32>(width)).collect();
    pool.give_all(taken);
}

/// Takes the buffers of [`backward`] over `rows` of `width`, and gives them back.
pub(crate) fn rehearse_backward(
    pool: &mut Rehearsal,
    [rows, width]: [usize; 2],
    wants_weight: bool,
) {
    let [chunk, partial] = Chunks::sizes(rows * width, width, wants_weight);
    let tasks = pool.at_a_time(rows.div_ceil(chunk));
    let mut taken = vec![pool.take::<f32>(partial)];
    taken.extend((0..2 * tasks).map(|_| pool.take::<f32>(width)));
    pool.give_all(taken);
}

/// Rows in chunks, each with a partial sum of the weight's gradient where that is wanted.
pub(crate) struct Chunks {
    width: usize,
    rows: usize,
    wants_weight: bool,
    /// `[chunks, width]`.
    partial: Scratch<f32>,
}

impl Chunks {
    pub(crate) fn new(elements: usize, width: usize, wants_weight: bool) -> Self {
        let [rows, partial] = Self::sizes(elements, width, wants_weight);
        Self { width, rows, wants_weight, partial: Scratch::new(partial) }
    }

    /// Rows of a chunk, and elements of the partial sums.
    fn sizes(elements: usize, width: usize, wants_weight: bool) -> [usize; 2] {
        let rows = tasks::rows_of_a_task(width).max(if wants_weight { CHUNK } else { 1 });
        let chunks = elements.div_ceil(rows * width);
        [rows, if wants_weight { chunks * width } else { 0 }]
    }

    /// Calls `run` with every chunk's range of elements, its part of `dx` and its partial sum,
    /// zero at first; the sum is empty where it is not wanted.
    pub(crate) fn each<T: Send>(
        &mut self,
        dx: &mut [T],
        run: impl Fn(std::ops::Range<usize>, &mut [T], &mut [f32]) + Sync,
    ) {
        let (len, elements) = (self.rows * self.width, dx.len());
        let mut partial = self.partial.chunks_exact_mut(self.width);
        let chunks: Vec<_> =
            dx.chunks_mut(len).map(|dx| (dx, partial.next().unwrap_or_default())).collect();
        tasks::each(chunks, elements, |index, (dx, dw)| {
            dw.fill(0.0);
            run(index * len..index * len + dx.len(), dx, dw);
        });
    }

    /// The gradient of the weight, `[width]`: the sum of the chunks in their order.
    pub(crate) fn sum(self) -> Result<Option<Tensor>> {
        if !self.wants_weight {
            return Ok(None);
        }
        let mut sum = vec![0f32; self.width];
        simd::vectorized(|| {
            for partial in self.partial.chunks_exact(self.width) {
                sum.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
            }
        });
        cpu::tensor(sum, self.width).map(Some)
    }
}
