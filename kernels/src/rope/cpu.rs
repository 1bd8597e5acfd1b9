//! Rotation on the CPU.

use candle_core::{Result, Tensor};

use crate::cpu::{self, Real};
use crate::fresh::fresh;
use crate::{simd, tasks};

/// The shape of `[N, H, D]` and what goes with a row of it.
#[derive(Clone, Copy)]
pub(super) struct Angles<'a> {
    heads: usize,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Angles<'_> {
    /// cos and sin of row `row` of `[N · H, head_dim]`.
    #[inline(always)]
    pub(super) fn of(&self, row: usize, head_dim: usize) -> (&[f32], &[f32]) {
        let half = head_dim / 2;
        let at = row / self.heads * half;
        (&self.cos[at..][..half], &self.sin[at..][..half])
    }
}

pub(super) fn with_angles<T: Real, const N: usize, R>(
    tensors: [&Tensor; N],
    cos: &Tensor,
    sin: &Tensor,
    f: impl FnOnce([&[T]; N], Angles) -> Result<R>,
) -> Result<R> {
    let (_, heads, head_dim) = tensors[0].dims3()?;
    cpu::with([cos, sin], |[cos, sin]: [&[f32]; 2]| {
        let angles = Angles { heads, head_dim, cos, sin };
        cpu::with(tensors, |tensors: [&[T]; N]| f(tensors, angles))
    })
}

/// Rotates by the angles times `direction`, 1 or −1.
pub(super) fn rotate<T: Real>(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    direction: f32,
) -> Result<Tensor> {
    with_angles([x], cos, sin, |[values]: [&[T]; 1], angles| {
        let mut y = fresh::<T>(values.len())?;
        let width = angles.heads * angles.head_dim;
        tasks::rows(width, [&mut y], |first, [y]| {
            let x = &values[first * width..][..y.len()];
            simd::vectorized(
                #[inline(always)]
                || {
                    let tokens = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
                    for (token, (x, y)) in tokens.enumerate() {
                        let (cos, sin) = angles.of((first + token) * angles.heads, angles.head_dim);
                        rotate_heads(x, cos, sin, direction, y);
                    }
                },
            );
        });
        cpu::tensor(y, x.shape())
    })
}

/// The heads of one token.
#[inline(always)]
fn rotate_heads<T: Real>(x: &[T], cos: &[f32], sin: &[f32], direction: f32, y: &mut [T]) {
    let half = cos.len();
    for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
        let (a, b) = x.split_at(half);
        let (first, second) = y.split_at_mut(half);
        rotate_head(a, b, cos, sin, direction, first, second);
    }
}

/// The first and the second half of a head, both ways.
#[inline(always)]
pub(super) fn rotate_head<X: Real, T: Real>(
    a: &[X],
    b: &[X],
    cos: &[f32],
    sin: &[f32],
    direction: f32,
    first: &mut [T],
    second: &mut [T],
) {
    let outputs = first.iter_mut().zip(second);
    for ((((first, second), (a, b)), cos), sin) in outputs.zip(a.iter().zip(b)).zip(cos).zip(sin) {
        let (a, b, sin) = (a.wide(), b.wide(), sin * direction);
        *first = T::narrow(a.mul_add(*cos, -(b * sin)));
        *second = T::narrow(b.mul_add(*cos, a * sin));
    }
}
