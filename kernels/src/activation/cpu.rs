//! Gated products on the CPU, each in one pass.

use candle_core::{Result, Tensor};

use super::Activation;
use super::gate::{Gate, GeluErf, GeluTanh, Silu};
use crate::cpu::{self, Real};
use crate::fresh::fresh;
use crate::{simd, tasks};

pub(super) fn forward<T: Real>(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    match activation {
        Activation::Silu => gated::<T, Silu>(gate, up),
        Activation::GeluTanh => gated::<T, GeluTanh>(gate, up),
        Activation::GeluErf => gated::<T, GeluErf>(gate, up),
    }
}

fn gated<T: Real, G: Gate>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let shape = gate.shape();
    cpu::with([gate, up], |[gate, up]: [&[T]; 2]| {
        let mut y = fresh::<T>(gate.len())?;
        tasks::rows(1, [&mut y], |first, [y]| {
            let range = first..first + y.len();
            let (gate, up) = (&gate[range.clone()], &up[range]);
            simd::vectorized(
                #[inline(always)]
                || gated_slices::<T, G>(gate, up, y),
            );
        });
        cpu::tensor(y, shape)
    })
}

#[inline(always)]
fn gated_slices<T: Real, G: Gate>(gate: &[T], up: &[T], y: &mut [T]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = T::narrow(G::value(gate.wide()) * up.wide());
    }
}

/// `[gated, d_gate, d_up]`.
pub(super) fn backward_with_output<T: Real>(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    match activation {
        Activation::Silu => all::<T, Silu>(gate, up, dy),
        Activation::GeluTanh => all::<T, GeluTanh>(gate, up, dy),
        Activation::GeluErf => all::<T, GeluErf>(gate, up, dy),
    }
}

fn all<T: Real, G: Gate>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
    let shape = gate.shape();
    cpu::with([gate, up, dy], |inputs: [&[T]; 3]| {
        let len = inputs[0].len();
        let (mut gated, mut d_gate, mut d_up) =
            (fresh::<T>(len)?, fresh::<T>(len)?, fresh::<T>(len)?);
        tasks::rows(1, [&mut gated, &mut d_gate, &mut d_up], |first, [gated, d_gate, d_up]| {
            let range = first..first + gated.len();
            let [gate, up, dy] = inputs.map(|input| &input[range.clone()]);
            simd::vectorized(
                #[inline(always)]
                || all_slices::<T, G>([gate, up, dy], gated, d_gate, d_up),
            );
        });
        let tensor = |values| cpu::tensor(values, shape);
        Ok([tensor(gated)?, tensor(d_gate)?, tensor(d_up)?])
    })
}

#[inline(always)]
fn all_slices<T: Real, G: Gate>(
    [gate, up, dy]: [&[T]; 3],
    gated: &mut [T],
    d_gate: &mut [T],
    d_up: &mut [T],
) {
    let outputs = gated.iter_mut().zip(d_gate).zip(d_up);
    for ((((gated, d_gate), d_up), (gate, up)), dy) in outputs.zip(gate.iter().zip(up)).zip(dy) {
        let (up, dy) = (up.wide(), dy.wide());
        let (value, slope) = G::value_and_slope(gate.wide());
        *gated = T::narrow(value * up);
        *d_gate = T::narrow(dy * up * slope);
        *d_up = T::narrow(dy * value);
    }
}

/// `[d_gate, d_up]`.
pub(super) fn backward<T: Real>(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<[Tensor; 2]> {
    match activation {
        Activation::Silu => gradients::<T, Silu>(gate, up, dy),
        Activation::GeluTanh => gradients::<T, GeluTanh>(gate, up, dy),
        Activation::GeluErf => gradients::<T, GeluErf>(gate, up, dy),
    }
}

fn gradients<T: Real, G: Gate>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Tensor; 2]> {
    let shape = gate.shape();
    cpu::with([gate, up, dy], |inputs: [&[T]; 3]| {
        let (mut d_gate, mut d_up) = (fresh::<T>(inputs[0].len())?, fresh::<T>(inputs[1].len())?);
        tasks::rows(1, [&mut d_gate, &mut d_up], |first, [d_gate, d_up]| {
            let range = first..first + d_gate.len();
            let [gate, up, dy] = inputs.map(|input| &input[range.clone()]);
            simd::vectorized(
                #[inline(always)]
                || gradient_slices::<T, G>([gate, up, dy], d_gate, d_up),
            );
        });
        Ok([cpu::tensor(d_gate, shape)?, cpu::tensor(d_up, shape)?])
    })
}

#[inline(always)]
fn gradient_slices<T: Real, G: Gate>([gate, up, dy]: [&[T]; 3], d_gate: &mut [T], d_up: &mut [T]) {
    let outputs = d_gate.iter_mut().zip(d_up);
    for (((d_gate, d_up), (gate, up)), dy) in outputs.zip(gate.iter().zip(up)).zip(dy) {
        let dy = dy.wide();
        let (value, slope) = G::value_and_slope(gate.wide());
        *d_gate = T::narrow(dy * up.wide() * slope);
        *d_up = T::narrow(dy * value);
    }
}
