//! The ops of this crate as steps of candle's own autograd, for programs that call
//! `loss.backward()` instead of writing a backward pass out.
//!
//! candle has no gradient for its fused `rms_norm`, `rope` and attention, and composing them from
//! basic ops keeps every intermediate result. Each function here runs a pair of this crate: its
//! forward pass at once, its backward pass when candle's comes by. Only the inputs are kept in
//! between (and, by [`linear_cross_entropy`], its gradients), and gradients are computed of tracked
//! inputs alone: those that are a `Var` or come from one.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use chandler_kernels::{autograd, rms_norm};
//!
//! # fn main() -> candle_core::Result<()> {
//! let x = Tensor::randn(0f32, 1.0, (4, 8), &Device::Cpu)?;
//! let norm = Var::ones(8, candle_core::DType::F32, &Device::Cpu)?;
//! let head = Var::randn(0f32, 1.0, (16, 8), &Device::Cpu)?;
//! let params = rms_norm::Params { eps: 1e-6, unit_offset: false };
//!
//! let hidden = autograd::rms_norm(&x, &norm, params)?;
//! let targets = [3, 1, 15, -100];
//! let mean = autograd::Reduction::Mean;
//! let loss = autograd::linear_cross_entropy(&hidden, &head, &targets, None, mean)?;
//! let gradients = loss.backward()?;
//!
//! assert_eq!(gradients.get(&norm).map(Tensor::dims), Some(&[8][..]));
//! assert_eq!(gradients.get(&head).map(Tensor::dims), Some(&[16, 8][..]));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/train_a_block.rs` trains a transformer block this way.
//!
//! # What candle's custom ops do not allow
//!
//! - At most three inputs, all of them tensors that may have a gradient. Token ids, targets,
//!   `cu_seqlens`, cos and sin are therefore part of the op, and nothing flows back to them: a
//!   rope with learned frequencies needs another way.
//! - One output, so a loss comes without its counts; [`crate::linear_cross_entropy::forward`] has
//!   them.
//! - Each device has an entry of its own. There is one for the CPU, and on other devices candle
//!   answers that the op has no implementation.
//! - A gradient has the dtype of its tensor: of a bf16 weight it is rounded to bf16, where the
//!   pairs give f32, and sums over micro-batches are rounded every time. Keep `Var`s in f32 and
//!   convert them (`to_dtype` is differentiable), or call the pairs.
//! - A backward pass cannot be differentiated again.

mod op;

use candle_core::{DType, Result, Tensor};

use crate::activation::Activation;
use crate::linear_cross_entropy::IGNORE_INDEX;
use crate::{accumulation_dtype, activation, attention, embedding as lookup, rms_norm as norm};
use crate::{linear as product, linear_cross_entropy as head_loss, rope as rotation};
use op::Op;

/// `x [.., E]`, `weight [E]` → [`rms_norm::forward`](norm::forward), differentiable in both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, params: norm::Params) -> Result<Tensor> {
    let y = norm::forward(&x.detach(), &weight.detach(), params)?;
    let op = Op::new("rms_norm", y, move |[x, weight], [_, wants_weight], dy| {
        let (dx, dw) = norm::backward(x, weight, params, dy, wants_weight)?;
        Ok([Some(dx), dw])
    });
    x.apply_op2(weight, op)
}

/// `x [N, H, D]`, `cos` and `sin` `[N, D/2]` (f32, or f64 for f64) →
/// [`rope::forward`](rotation::forward), differentiable in `x`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (cos, sin) = (cos.detach(), sin.detach());
    let y = rotation::forward(&x.detach(), &cos, &sin)?;
    x.apply_op1(Op::new("rope", y, move |_, _, dy| Ok([Some(rotation::backward(dy, &cos, &sin)?)])))
}

/// `q [N, H, D]`, `k` and `v` `[N, K, D]` → [`attention::forward`], `[N, H, D]`, differentiable in
/// all three.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: attention::Params,
) -> Result<Tensor> {
    let y = attention::forward(&q.detach(), &k.detach(), &v.detach(), cu_seqlens, params)?;
    let cu_seqlens = cu_seqlens.to_vec();
    let op = Op::new("attention", y, move |[q, k, v], _, dy| {
        Ok(attention::backward(q, k, v, &cu_seqlens, params, dy)?.map(Some))
    });
    q.apply_op3(k, v, op)
}

/// `gate` and `up` `[N, F]` → [`activation::forward`], differentiable in both.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let y = activation::forward(&gate.detach(), &up.detach(), activation)?;
    let op = Op::new("gated", y, move |[gate, up], _, dy| {
        let (d_gate, d_up) = activation::backward(gate, up, activation, dy)?;
        Ok([Some(d_gate), Some(d_up)])
    });
    gate.apply_op2(up, op)
}

/// `x [.., I]`, `weight [O, I]` → `x·Wᵀ [.., O]` by [`linear::forward`](product::forward),
/// differentiable in both. A bias is a `broadcast_add` away.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let flat = x.reshape(((), inputs))?;
    let y = product::forward(&flat.detach(), &weight.detach(), None)?;
    let op = Op::new("linear", y, |[x, weight], [wants_x, wants_weight], dy| {
        let dx = wants_x.then(|| product::backward_input(weight, dy)).transpose()?;
        let dw = wants_weight.then(|| product::backward_weight(x, dy)).transpose()?;
        Ok([dx, dw])
    });
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    flat.apply_op2(weight, op)?.reshape(shape)
}

/// What becomes of the losses of single tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean over the tokens that have a target; 0 if there are none.
    Mean,
    /// Their sum.
    Sum,
}

/// `hidden [N, E]`, `head [V, E]`, `targets` N class indices or
/// [`IGNORE_INDEX`] → the cross entropy of `softcap(hidden · headᵀ)`, a scalar in f32 (f64 for
/// f64), differentiable in `hidden` and `head`.
///
/// The logits of the whole batch never exist. Loss and gradients are computed in one pass, so the
/// gradients (`[N, E]`, and `[V, E]` if `head` is tracked) live as long as the loss.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
    reduction: Reduction,
) -> Result<Tensor> {
    let scale = match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => {
            1.0 / targets.iter().filter(|t| **t != IGNORE_INDEX).count().max(1) as f64
        }
    };
    let scalar = |score: head_loss::Score| {
        Tensor::new(score.loss_sum * scale, hidden.device())?
            .to_dtype(accumulation_dtype(hidden.dtype()))
    };
    let (plain_hidden, plain_head) = (hidden.detach(), head.detach());
    if !hidden.track_op() && !head.track_op() {
        return scalar(head_loss::forward(&plain_hidden, &plain_head, targets, softcap)?);
    }
    let wide = accumulation_dtype(head.dtype());
    let zeros = || Tensor::zeros(head.shape(), wide, head.device());
    let d_head = head.track_op().then(zeros).transpose()?;
    let (score, d_hidden) = head_loss::forward_backward(
        &plain_hidden,
        &plain_head,
        targets,
        softcap,
        scale,
        d_head.as_ref(),
    )?;
    let op = Op::new("linear_cross_entropy", scalar(score)?, move |_, _, d_loss| {
        let d_loss = d_loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let of = |d: &Tensor| if d_loss == 1.0 { Ok(d.clone()) } else { d * d_loss };
        Ok([Some(of(&d_hidden)?), d_head.as_ref().map(of).transpose()?])
    });
    hidden.apply_op2(head, op)
}

/// `table [V, E]`, `ids [..]` (u32) → their rows `[.., E]` by
/// [`embedding::forward`](lookup::forward), differentiable in `table`.
///
/// Tokens that share a row are added in their order, in f32 (f64 for f64), so the gradient has the
/// same bits on any number of threads.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let flat = ids.flatten_all()?;
    let y = lookup::forward(&table.detach(), &flat, None)?;
    let shape = [ids.dims(), &[table.dim(1)?]].concat();
    let op = Op::new("embedding", y, move |[table], _, dy| {
        let wide = accumulation_dtype(table.dtype());
        let d_table = Tensor::zeros(table.shape(), wide, table.device())?;
        lookup::add_gradient(&d_table, &flat, None, dy, None)?;
        Ok([Some(d_table)])
    });
    table.apply_op1(op)?.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::{D, Device, Var};

    /// Gradients through `loss.backward()` against those of a composition, in f64 and f32, for
    /// every choice of inputs that are tracked, each of them behind another op.
    fn same_gradients(
        shapes: &[&[usize]],
        ours: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        for (dtype, tolerance) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let inputs = check::random(shapes, dtype)?;
            for tracked in 0..1usize << inputs.len() {
                let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
                let is_tracked = |i: usize| tracked >> i & 1 == 1;
                let behind = |(i, var): (usize, &Var)| {
                    if is_tracked(i) { var.as_tensor() * 1.5 } else { &var.detach() * 1.5 }
                };
                let x: Vec<Tensor> = vars.iter().enumerate().map(behind).collect::<Result<_>>()?;
                let (y, expected) = (ours(&x)?, composed(&x)?);
                check::close(&y, &expected, tolerance)?;
                assert_eq!(y.track_op(), tracked > 0);
                let dy = check::random(&[y.dims()], dtype)?.remove(0);
                let store = (y * &dy)?.sum_all()?.backward()?;
                let expected = (expected * &dy)?.sum_all()?.backward()?;
                for (i, var) in vars.iter().enumerate() {
                    assert_eq!(store.get(var).is_some(), is_tracked(i));
                    if let (Some(got), Some(expected)) = (store.get(var), expected.get(var)) {
                        assert_eq!(got.dtype(), dtype);
                        check::close(got, expected, tolerance)?;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn rms_norm_has_the_gradients_of_its_composition() -> Result<()> {
        let params = norm::Params { eps: 1e-3, unit_offset: true };
        same_gradients(
            &[&[3, 2, 6], &[6]],
            |x| rms_norm(&x[0], &x[1], params),
            |x| {
                let mean = x[0].sqr()?.mean_keepdim(D::Minus1)?;
                let normed = x[0].broadcast_div(&(mean + params.eps)?.sqrt()?)?;
                normed.broadcast_mul(&(&x[1] + 1.0)?)
            },
        )
    }

    #[test]
    fn rope_has_the_gradient_of_its_composition() -> Result<()> {
        let angles = check::random(&[&[5, 3]], DType::F64)?.remove(0);
        let of = |x: &Tensor| -> Result<[Tensor; 2]> {
            Ok([angles.cos()?.to_dtype(x.dtype())?, angles.sin()?.to_dtype(x.dtype())?])
        };
        same_gradients(
            &[&[5, 2, 6]],
            |x| {
                let [cos, sin] = of(&x[0])?;
                rope(&x[0], &cos, &sin)
            },
            |x| {
                let [cos, sin] = of(&x[0])?;
                let (a, b) = (x[0].narrow(2, 0, 3)?, x[0].narrow(2, 3, 3)?);
                let turned = Tensor::cat(&[b.neg()?, a], 2)?;
                let twice = |t: &Tensor| Tensor::cat(&[t, t], 1)?.unsqueeze(1);
                x[0].broadcast_mul(&twice(&cos)?)? + turned.broadcast_mul(&twice(&sin)?)?
            },
        )
    }

    #[test]
    fn attention_has_the_gradients_of_its_composition() -> Result<()> {
        let params = attention::Params { scale: 0.4, softcap: None, window: None };
        let hidden = |q: usize, k: usize| k > q || (k < 3) != (q < 3);
        let mask: Vec<f64> = (0..35)
            .map(|i| if hidden(i / 7 + 2, i % 7) { f64::NEG_INFINITY } else { 0.0 })
            .collect();
        let rest = Tensor::from_vec(mask, (5, 7), &Device::Cpu)?;
        let first: Vec<f64> =
            (0..14).map(|i| if hidden(i / 7, i % 7) { f64::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::cat(&[Tensor::from_vec(first, (2, 7), &Device::Cpu)?, rest], 0)?;
        same_gradients(
            &[&[7, 2, 3], &[7, 1, 3], &[7, 1, 3]],
            |x| attention(&x[0], &x[1], &x[2], &[0, 3, 7], params),
            |x| {
                let (k, v) = (x[1].squeeze(1)?, x[2].squeeze(1)?);
                let head = |h: usize| {
                    let scores = (x[0].narrow(1, h, 1)?.squeeze(1)?.matmul(&k.t()?)? * 0.4)?;
                    let scores = (scores + mask.to_dtype(x[0].dtype())?)?;
                    candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?.unsqueeze(1)
                };
                Tensor::cat(&[head(0)?, head(1)?], 1)
            },
        )
    }

    #[test]
    fn gated_has_the_gradients_of_its_composition() -> Result<()> {
        same_gradients(
            &[&[5, 6], &[5, 6]],
            |x| gated(&x[0], &x[1], Activation::Silu),
            |x| x[0].silu()? * &x[1],
        )
    }

    #[test]
    fn linear_has_the_gradients_of_its_composition() -> Result<()> {
        same_gradients(
            &[&[2, 5, 3], &[4, 3]],
            |x| linear(&x[0], &x[1]),
            |x| x[0].reshape((10, 3))?.matmul(&x[1].t()?)?.reshape((2, 5, 4)),
        )
    }

    #[test]
    fn embedding_has_the_gradient_of_its_composition() -> Result<()> {
        let ids = Tensor::new(&[[2u32, 0, 2], [5, 5, 2]], &Device::Cpu)?;
        let flat = ids.flatten_all()?;
        same_gradients(
            &[&[6, 3]],
            |x| embedding(&x[0], &ids),
            |x| x[0].index_select(&flat, 0)?.reshape((2, 3, 3)),
        )
    }

    #[test]
    fn linear_cross_entropy_has_the_gradients_of_its_composition() -> Result<()> {
        let targets = [3, IGNORE_INDEX, 0, 6, IGNORE_INDEX];
        let kept = Tensor::new(&[0u32, 2, 3], &Device::Cpu)?;
        let classes = Tensor::new(&[3u32, 0, 6], &Device::Cpu)?;
        for (reduction, factor) in [(Reduction::Mean, 1.0), (Reduction::Sum, 3.0)] {
            for softcap in [None, Some(0.7)] {
                same_gradients(
                    &[&[5, 4], &[7, 4]],
                    |x| linear_cross_entropy(&x[0], &x[1], &targets, softcap, reduction),
                    |x| {
                        let mut logits = x[0].matmul(&x[1].t()?)?;
                        if let Some(cap) = softcap {
                            logits = ((logits / cap)?.tanh()? * cap)?;
                        }
                        let logits = logits.index_select(&kept, 0)?;
                        candle_nn::loss::cross_entropy(&logits, &classes)? * factor
                    },
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_loss_over_nothing_is_zero() -> Result<()> {
        let x = check::random(&[&[2, 4], &[7, 4]], DType::F32)?;
        let head = Var::from_tensor(&x[1])?;
        let loss = linear_cross_entropy(&x[0], &head, &[-100; 2], None, Reduction::Mean)?;
        assert_eq!(loss.to_scalar::<f32>()?, 0.0);
        let store = loss.backward()?;
        check::close(store.get(&head).expect("tracked"), &x[1].zeros_like()?, 0.0)
    }

    #[test]
    fn gradients_have_the_dtype_of_their_tensors() -> Result<()> {
        let x = check::random(&[&[4, 6], &[6]], DType::BF16)?;
        let (x, weight) = (Var::from_tensor(&x[0])?, Var::from_tensor(&x[1])?);
        let params = norm::Params { eps: 1e-3, unit_offset: false };
        let store = rms_norm(&x, &weight, params)?.sum_all()?.backward()?;
        for var in [&x, &weight] {
            assert_eq!(store.get(var).map(Tensor::dtype), Some(DType::BF16));
        }
        Ok(())
    }
}
