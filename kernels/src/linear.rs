//! `y = x·Wᵀ + b`, the product that a transformer spends its time in.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::accumulation_dtype;
use crate::cpu::{self, Real};
use crate::fresh::fresh;
use crate::gemm::{self, Operand};

/// `x [N, I]`, `weight [O, I]`, `bias [O]` → `y [N, O]`, in the dtype of `x`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (tokens, inputs) = x.dims2()?;
    let (outputs, width) = weight.dims2()?;
    if inputs != width {
        bail!("linear of x {:?} by a weight {:?}", x.dims(), weight.dims());
    }
    let y = match kernel_dtype(x, weight) {
        Some(DType::BF16) => product::<bf16, bf16>(x, weight, [tokens, outputs, inputs], ROWS)?,
        Some(_) => product::<f32, f32>(x, weight, [tokens, outputs, inputs], ROWS)?,
        None => x.matmul(&weight.t()?)?,
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Gradient of the input: `dy [N, O]`, `weight [O, I]` → `dx [N, I]`.
pub fn backward_input(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (tokens, outputs) = dy.dims2()?;
    let (rows, inputs) = weight.dims2()?;
    if outputs != rows {
        bail!("linear of dy {:?} by a weight {:?}", dy.dims(), weight.dims());
    }
    match kernel_dtype(dy, weight) {
        Some(DType::BF16) => product::<bf16, bf16>(dy, weight, [tokens, inputs, outputs], INPUT),
        Some(_) => product::<f32, f32>(dy, weight, [tokens, inputs, outputs], INPUT),
        None => dy.matmul(weight),
    }
}

/// Gradient of the weight: `x [N, I]`, `dy [N, O]` → `dW [O, I]`, in f32 (f64 for f64).
pub fn backward_weight(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (tokens, inputs) = x.dims2()?;
    let (rows, outputs) = dy.dims2()?;
    if tokens != rows {
        bail!("linear of x {:?} and dy {:?}", x.dims(), dy.dims());
    }
    match kernel_dtype(x, dy) {
        Some(DType::BF16) => product::<bf16, f32>(dy, x, [outputs, inputs, tokens], WEIGHT),
        Some(_) => product::<f32, f32>(dy, x, [outputs, inputs, tokens], WEIGHT),
        None => dy.t()?.matmul(x)?.to_dtype(accumulation_dtype(x.dtype())),
    }
}

/// Gradient of the bias: `dy [N, O]` → `db [O]`, in f32 (f64 for f64).
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    dy.to_dtype(accumulation_dtype(dy.dtype()))?.sum(0)
}

fn kernel_dtype(a: &Tensor, b: &Tensor) -> Option<DType> {
    cpu::fast_dtype(&[a, b]).filter(|_| gemm::is_fast())
}

/// Whether the left and the right side of a product lie with the summed dimension last.
#[derive(Clone, Copy)]
struct Lies {
    left: bool,
    right: bool,
}

const ROWS: Lies = Lies { left: true, right: true };
const INPUT: Lies = Lies { left: true, right: false };
const WEIGHT: Lies = Lies { left: false, right: false };

/// `left · rightᵀ`, `[m, n]`, summed over `k`.
fn product<T: Real, O: Real>(
    left: &Tensor,
    right: &Tensor,
    [m, n, k]: [usize; 3],
    lies: Lies,
) -> Result<Tensor> {
    cpu::with([left, right], |[left, right]: [&[T]; 2]| {
        let (left, right) = (side(lies.left, left, m, k), side(lies.right, right, n, k));
        let mut out = fresh::<O>(m * n);
        if !T::multiply(&left, &right, &mut out, n, false) {
            bail!("no product of {:?} on this CPU", T::DTYPE);
        }
        cpu::tensor(out, (m, n))
    })
}

fn side<T>(last: bool, data: &[T], len: usize, depth: usize) -> Operand<'_, T> {
    if last { Operand::rows(data, len, depth) } else { Operand::columns(data, len, depth) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn matches_the_composition() -> Result<()> {
        check::pair(
            &[&[5, 3], &[4, 3], &[4]],
            |x| x[0].matmul(&x[1].t()?)?.broadcast_add(&x[2]),
            |x| forward(&x[0], &x[1], Some(&x[2])),
            |x, dy| {
                let dx = backward_input(&x[1], dy)?;
                Ok(vec![dx, backward_weight(&x[0], dy)?, backward_bias(dy)?])
            },
        )
    }
}
