//! `kernels/cuda/activation.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, address, address_or_null, arguments, empty, suffix};
use super::program::{Program, source};
use crate::activation::Activation;

static PROGRAM: Program = source!("activation");

const THREADS: usize = 256;

/// A launch over so many elements, 16 bytes a thread.
fn launch(kernel: &str, elements: usize, dtype: DType) -> Launch<'static> {
    Launch {
        program: &PROGRAM,
        kernel: format!("{kernel}_{}", suffix(dtype)),
        head_dim: None,
        grid: [elements.div_ceil(THREADS * 16 / dtype.size_in_bytes()), 1, 1],
        block: THREADS,
        shared: 0,
    }
}

fn kind(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
    }
}

pub(crate) fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let y = empty(gate.dims(), gate.dtype(), gate.device())?;
    let elements = gate.elem_count();
    let arguments = arguments![
        address(&gate)?,
        address(&up)?,
        address(&y)?,
        elements as u64,
        kind(activation),
    ];
    let launch = launch("activation_forward", elements, gate.dtype());
    // SAFETY: all three have that many elements.
    unsafe { launch.run(gate.device(), &arguments) }?;
    Ok(y)
}

/// The gradients of `gate` and `up`.
pub(crate) fn backward(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<[Tensor; 2]> {
    backward_into(gate, up, activation, dy, None)
}

/// The activation again, and the gradients of `gate` and `up`.
pub(crate) fn backward_with_output(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let gated = empty(gate.dims(), gate.dtype(), gate.device())?;
    let [d_gate, d_up] = backward_into(gate, up, activation, dy, Some(&gated))?;
    Ok([gated, d_gate, d_up])
}

fn backward_into(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    dy: &Tensor,
    gated: Option<&Tensor>,
) -> Result<[Tensor; 2]> {
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let output = || empty(gate.dims(), gate.dtype(), gate.device());
    let (d_gate, d_up) = (output()?, output()?);
    let elements = gate.elem_count();
    let arguments = arguments![
        address(&gate)?,
        address(&up)?,
        address(&dy)?,
        address(&d_gate)?,
        address(&d_up)?,
        address_or_null(gated)?,
        elements as u64,
        kind(activation),
    ];
    let launch = launch("activation_backward", elements, gate.dtype());
    // SAFETY: all of them have that many elements, or there is no third output.
    unsafe { launch.run(gate.device(), &arguments) }?;
    Ok([d_gate, d_up])
}
