//! The norm of the heads and their rotation in one pass.

use candle_core::{Result, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::cpu::{Angles, rotate_head, with_angles};
use crate::fresh::fresh;
use crate::rms_norm::{
    self, Chunks, Row, backward_sums, factor, input_gradient, inv_rms, scale, specialised,
    weight_gradient,
};
use crate::scratch::Scratch;
use crate::{cpu, tasks};

pub(super) fn forward<T: Row>(
    raw: &Tensor,
    weight: &Tensor,
    norm: rms_norm::Params,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let factor = &factor(weight, norm)?[..];
    let (width, eps) = (factor.len(), norm.eps as f32);
    with_angles([raw], cos, sin, |[values]: [&[T]; 1], angles| {
        let mut y = fresh::<T>(values.len())?;
        tasks::rows(width, [&mut y], |first, [y]| {
            let raw = &values[first * width..][..y.len()];
            Arch::new().dispatch(Forward { raw, factor, eps, angles, first, y });
        });
        cpu::tensor(y, raw.shape())
    })
}

/// Rows of `factor.len()`, the first of which is row `first` of all.
struct Forward<'a, T> {
    raw: &'a [T],
    factor: &'a [f32],
    eps: f32,
    angles: Angles<'a>,
    first: usize,
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
        let Self { raw, factor, eps, angles, first, y } = self;
        let factor = &factor[..width];
        let [mut wide, mut normed] = [Scratch::<f32>::new(width), Scratch::<f32>::new(width)];
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let raw = T::widened(&raw[row * width..][..width], &mut wide[..width]);
            let normed = &mut normed[..width];
            scale(raw, factor, inv_rms(simd, raw, eps), normed);
            let (cos, sin) = angles.of(first + row, width);
            let ((a, b), (to_a, to_b)) = (normed.split_at(width / 2), y.split_at_mut(width / 2));
            rotate_head(a, b, cos, sin, 1.0, to_a, to_b);
        }
    }
}

pub(super) fn backward<T: Row>(
    raw: &Tensor,
    weight: &Tensor,
    norm: rms_norm::Params,
    [cos, sin]: [&Tensor; 2],
    dy: &Tensor,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let factor = &factor(weight, norm)?[..];
    let (width, eps) = (factor.len(), norm.eps as f32);
    with_angles([raw, dy], cos, sin, |[values, dy]: [&[T]; 2], angles| {
        let mut d_raw = fresh::<T>(values.len())?;
        let mut chunks = Chunks::new(values.len(), width, wants_weight);
        chunks.each(&mut d_raw, |range, d_raw, dw| {
            let first = range.start / width;
            let (raw, dy) = (&values[range.clone()], &dy[range]);
            Arch::new().dispatch(Backward { raw, factor, eps, angles, first, dy, d_raw, dw });
        });
        Ok((cpu::tensor(d_raw, raw.shape())?, chunks.sum()?))
    })
}

/// Rows of `factor.len()`, the first of which is row `first` of all; `dw` is empty where it is not
/// wanted.
struct Backward<'a, T> {
    raw: &'a [T],
    factor: &'a [f32],
    eps: f32,
    angles: Angles<'a>,
    first: usize,
    dy: &'a [T],
    d_raw: &'a mut [T],
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
        let Self { raw, factor, eps, angles, first, dy, d_raw, dw } = self;
        let factor = &factor[..width];
        let [mut wide, mut d_normed] = [Scratch::<f32>::new(width), Scratch::<f32>::new(width)];
        for (row, d_raw) in d_raw.chunks_exact_mut(width).enumerate() {
            let raw = T::widened(&raw[row * width..][..width], &mut wide[..width]);
            let (cos, sin) = angles.of(first + row, width);
            let (a, b) = dy[row * width..][..width].split_at(width / 2);
            let d_normed = &mut d_normed[..width];
            let (to_a, to_b) = d_normed.split_at_mut(width / 2);
            rotate_head(a, b, cos, sin, -1.0, to_a, to_b);
            let (inv_rms, products) = backward_sums(simd, raw, factor, d_normed, eps);
            let along = products * inv_rms * inv_rms * inv_rms / width as f32;
            input_gradient(raw, factor, d_normed, [inv_rms, along], d_raw);
            if !dw.is_empty() {
                weight_gradient(raw, d_normed, inv_rms, &mut dw[..width]);
            }
        }
    }
}
