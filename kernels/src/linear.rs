//! `y = x·Wᵀ + b`, the product that a transformer spends its time in.

use candle_core::{Result, Tensor};

use crate::accumulation_dtype;

/// `x [N, I]`, `weight [O, I]`, `bias [O]` → `y [N, O]`, in the dtype of `x`.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Gradient of the input: `dy [N, O]`, `weight [O, I]` → `dx [N, I]`.
pub fn backward_input(weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    dy.matmul(weight)
}

/// Gradient of the weight: `x [N, I]`, `dy [N, O]` → `dW [O, I]`, in f32 (f64 for f64).
pub fn backward_weight(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    dy.t()?.matmul(x)?.to_dtype(accumulation_dtype(x.dtype()))
}

/// Gradient of the bias: `dy [N, O]` → `db [O]`, in f32 (f64 for f64).
pub fn backward_bias(dy: &Tensor) -> Result<Tensor> {
    dy.to_dtype(accumulation_dtype(dy.dtype()))?.sum(0)
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
