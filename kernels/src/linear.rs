//! `y = x·Wᵀ + b`, the product that a transformer spends its time in.

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::cpu::{self, Real};
#[cfg(feature = "cuda")]
use crate::cuda::{
    self,
    gemm::{Before, Factor, multiply as gemm_ex},
    on_gpu,
};
use crate::fresh::fresh;
use crate::gemm::{self, Operand};
use crate::profile::{self, Op, Timer};
use crate::rehearsal::Rehearsal;
use crate::{accumulation_dtype, bias};

/// `x [N, I]`, `weight [O, I]`, `bias [O]` → `y [N, O]`, in the dtype of `x`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (tokens, inputs) = x.dims2()?;
    let (outputs, width) = weight.dims2()?;
    if inputs != width {
        bail!("linear of x {:?} by a weight {:?}", x.dims(), weight.dims());
    }
    let _timer = timer(Op::LinearForward, [tokens, outputs, inputs], x, x.dtype());
    let y = match kernel_dtype(x, weight) {
        Some(DType::BF16) => product::<bf16, bf16>(x, weight, [tokens, outputs, inputs], ROWS)?,
        Some(_) => product::<f32, f32>(x, weight, [tokens, outputs, inputs], ROWS)?,
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, weight]) => {
            let y = cuda::empty((tokens, outputs), x.dtype(), x.device())?;
            gemm_ex(&y, &Factor::new(x)?, &Factor::transposed(weight)?, Before::Replaced)?;
            y
        }
        None => x.matmul(&weight.t()?)?,
    };
    match bias {
        Some(bias) => bias::add(y, bias),
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
    let _timer = timer(Op::LinearBackwardInput, [tokens, inputs, outputs], dy, dy.dtype());
    match kernel_dtype(dy, weight) {
        Some(DType::BF16) => product::<bf16, bf16>(dy, weight, [tokens, inputs, outputs], INPUT),
        Some(_) => product::<f32, f32>(dy, weight, [tokens, inputs, outputs], INPUT),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[dy, weight]) => {
            let dx = cuda::empty((tokens, inputs), dy.dtype(), dy.device())?;
            gemm_ex(&dx, &Factor::new(dy)?, &Factor::new(weight)?, Before::Replaced)?;
            Ok(dx)
        }
        None => dy.matmul(weight),
    }
}

/// Gradient of the weight: `x [N, I]`, `dy [N, O]` → `dW [O, I]`, in f32 (f64 for f64).
pub fn backward_weight(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let shape = weight_shape(x, dy)?;
    let sums = accumulation_dtype(x.dtype());
    let _timer = timer(Op::LinearBackwardWeight, shape, x, sums);
    match kernel_dtype(x, dy) {
        Some(DType::BF16) => product::<bf16, f32>(dy, x, shape, WEIGHT),
        Some(_) => product::<f32, f32>(dy, x, shape, WEIGHT),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, dy]) => {
            let dw = cuda::empty((shape[0], shape[1]), sums, x.device())?;
            gemm_ex(&dw, &Factor::transposed(dy)?, &Factor::new(x)?, Before::Replaced)?;
            Ok(dw)
        }
        None => dy.t()?.matmul(x)?.to_dtype(sums),
    }
}

/// Adds the gradient of the weight to `d_weight [O, I]` in place: f32 (f64 for f64), or bf16, which
/// is rounded once.
pub fn add_weight_gradient(d_weight: &Tensor, x: &Tensor, dy: &Tensor) -> Result<()> {
    let [outputs, inputs, tokens] = weight_shape(x, dy)?;
    if d_weight.dims() != [outputs, inputs] {
        bail!("a gradient {:?} for a weight of {outputs} x {inputs}", d_weight.dims());
    }
    cpu::check_apart(d_weight, &[x, dy])?;
    let shape = [outputs, inputs, tokens];
    let _timer = timer(Op::LinearBackwardWeight, shape, x, d_weight.dtype());
    match (kernel_dtype(x, dy), d_weight.dtype()) {
        (Some(DType::BF16), DType::F32) => add_product::<bf16, f32>(d_weight, dy, x, shape, WEIGHT),
        (Some(DType::BF16), DType::BF16) => {
            add_product::<bf16, bf16>(d_weight, dy, x, shape, WEIGHT)
        }
        (Some(DType::F32), DType::F32) => add_product::<f32, f32>(d_weight, dy, x, shape, WEIGHT),
        #[cfg(feature = "cuda")]
        (None, sum) if on_gpu(&[x, dy]) && (sum == DType::F32 || sum == x.dtype()) => {
            gemm_ex(d_weight, &Factor::transposed(dy)?, &Factor::new(x)?, Before::AddedTo)
        }
        _ => {
            let dw = dy.t()?.matmul(x)?.to_dtype(accumulation_dtype(x.dtype()))?;
            let sum = (d_weight.to_dtype(dw.dtype())? + dw)?;
            d_weight.slice_set(&sum.to_dtype(d_weight.dtype())?, 0, 0)
        }
    }
}

/// Adds `x·Wᵀ` to `y [N, O]` in place, in the dtype of `x`.
pub fn add_forward(y: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    let (tokens, inputs) = x.dims2()?;
    let outputs = weight.dim(0)?;
    check_sum(y, [tokens, outputs], x)?;
    cpu::check_apart(y, &[x, weight])?;
    let _timer = timer(Op::LinearForward, [tokens, outputs, inputs], x, x.dtype());
    match kernel_dtype(x, weight) {
        Some(DType::BF16) => {
            add_product::<bf16, bf16>(y, x, weight, [tokens, outputs, inputs], ROWS)
        }
        Some(_) => add_product::<f32, f32>(y, x, weight, [tokens, outputs, inputs], ROWS),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[x, weight]) => {
            gemm_ex(y, &Factor::new(x)?, &Factor::transposed(weight)?, Before::AddedTo)
        }
        None => y.slice_set(&(y + x.matmul(&weight.t()?)?)?, 0, 0),
    }
}

/// Adds the gradient of the input, `dy·W`, to `dx [N, I]` in place.
pub fn add_backward_input(dx: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<()> {
    let (tokens, outputs) = dy.dims2()?;
    let inputs = weight.dim(1)?;
    check_sum(dx, [tokens, inputs], dy)?;
    cpu::check_apart(dx, &[dy, weight])?;
    let _timer = timer(Op::LinearBackwardInput, [tokens, inputs, outputs], dy, dy.dtype());
    match kernel_dtype(dy, weight) {
        Some(DType::BF16) => {
            add_product::<bf16, bf16>(dx, dy, weight, [tokens, inputs, outputs], INPUT)
        }
        Some(_) => add_product::<f32, f32>(dx, dy, weight, [tokens, inputs, outputs], INPUT),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[dy, weight]) => {
            gemm_ex(dx, &Factor::new(dy)?, &Factor::new(weight)?, Before::AddedTo)
        }
        None => dx.slice_set(&(dx + dy.matmul(weight)?)?, 0, 0),
    }
}

fn check_sum(sum: &Tensor, shape: [usize; 2], term: &Tensor) -> Result<()> {
    if sum.dims() != shape || sum.dtype() != term.dtype() {
        bail!("a sum {sum:?} for a product {shape:?} in {:?}", term.dtype());
    }
    Ok(())
}

/// `[O, I, N]`
fn weight_shape(x: &Tensor, dy: &Tensor) -> Result<[usize; 3]> {
    let (tokens, inputs) = x.dims2()?;
    let (rows, outputs) = dy.dims2()?;
    if tokens != rows {
        bail!("linear of x {:?} and dy {:?}", x.dims(), dy.dims());
    }
    Ok([outputs, inputs, tokens])
}

/// Gradient of the bias: `dy [N, O]` → `db [O]`, in f32 (f64 for f64).
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    bias::backward(dy)
}

/// Takes the buffers of a product that sums over the last of `[rows, columns, depth]`, and gives
/// them back: `[N, O, I]` is the forward pass of a layer `[O, I]` over N tokens, `[N, I, O]` the
/// gradient of its input.
pub fn rehearse(pool: &mut Rehearsal, size: [usize; 3], dtype: DType) {
    // Products on a GPU are cuBLAS's, which has buffers of its own.
    if !pool.is_of_gpu() {
        gemm::rehearse(pool, size, false, [dtype; 2]);
    }
}

/// The same for the gradient of a weight, `[O, I, N]`, which is of `gradient`.
pub fn rehearse_weight_gradient(
    pool: &mut Rehearsal,
    size: [usize; 3],
    dtype: DType,
    gradient: DType,
) {
    if !pool.is_of_gpu() {
        gemm::rehearse(pool, size, true, [dtype, gradient]);
    }
}

/// Counts a product `[m, k] · [k, n]` of operands like `operand`.
fn timer(op: Op, [m, n, k]: [usize; 3], operand: &Tensor, product: DType) -> Timer {
    let read = (m + n) * k * operand.dtype().size_in_bytes();
    profile::time(op, 2 * m * n * k).moving(read + m * n * product.size_in_bytes())
}

fn kernel_dtype(a: &Tensor, b: &Tensor) -> Option<DType> {
    cpu::fast_dtype(&[a, b])
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
        let mut out = fresh::<O>(m * n)?;
        T::multiply(&left, &right, &mut out, n, false);
        cpu::tensor(out, (m, n))
    })
}

/// The same, added to `sum [m, n]` in place.
fn add_product<T: Real, O: Real>(
    sum: &Tensor,
    left: &Tensor,
    right: &Tensor,
    [m, n, k]: [usize; 3],
    lies: Lies,
) -> Result<()> {
    cpu::with([left, right], |[left, right]: [&[T]; 2]| {
        let (left, right) = (side(lies.left, left, m, k), side(lies.right, right, n, k));
        cpu::update(sum, |sum: &mut [O]| {
            T::multiply(&left, &right, sum, n, true);
            Ok(())
        })
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

    /// Every product of `dtype` against the same in f64.
    fn products_match(dtype: DType, tolerance: f64) -> Result<()> {
        let rounded = check::random(&[&[37, 50], &[70, 50], &[37, 70], &[70]], dtype)?;
        let exact: Vec<Tensor> =
            rounded.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
        let all = |t: &[Tensor], gradient: DType| -> Result<Vec<Tensor>> {
            let (x, w, dy, b) = (&t[0], &t[1], &t[2], &t[3]);
            let dw = Tensor::ones(w.dims(), gradient, w.device())?;
            add_weight_gradient(&dw, x, dy)?;
            let (y, dx) = (dy.copy()?, x.copy()?);
            add_forward(&y, x, w)?;
            add_backward_input(&dx, w, dy)?;
            let plain = [forward(x, w, Some(b))?, backward_input(w, dy)?, backward_weight(x, dy)?];
            Ok([plain.to_vec(), vec![backward_bias(dy)?, dw, y, dx]].concat())
        };
        for gradient in [DType::F32, dtype] {
            for (fast, exact) in all(&rounded, gradient)?.iter().zip(all(&exact, DType::F64)?) {
                let fast = fast.to_dtype(DType::F64)?;
                check::close(&fast, &exact, tolerance)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_kernels_products_match_f64() -> Result<()> {
        products_match(DType::F32, 1e-5)?;
        products_match(DType::BF16, 0.06)
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() -> Result<()> {
        let x = check::random(&[&[5, 3], &[4, 2], &[6, 4]], DType::F32)?;
        assert!(forward(&x[0], &x[1], None).is_err());
        assert!(backward_weight(&x[0], &x[2]).is_err());
        assert!(add_weight_gradient(&x[1], &x[0], &x[0]).is_err());
        assert!(add_forward(&x[1], &x[0], &x[0]).is_err());
        Ok(())
    }
}
