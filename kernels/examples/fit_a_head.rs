//! Trains an output head over fixed hidden states: loss and gradients in one pass, then AdamW in
//! place. No logits of the whole batch, no autograd graph.

use std::io::Write;

use candle_core::{DType, Device, Tensor};
use chandler_kernels::{adamw, linear_cross_entropy};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (tokens, width, vocabulary) = (64, 32, 1000);
    let hidden = Tensor::randn(0f32, 1.0, (tokens, width), &Device::Cpu)?;
    let targets: Vec<i64> = (0..tokens as i64).map(|token| token * 37 % 1000).collect();
    let head = Tensor::zeros((vocabulary, width), DType::F32, &Device::Cpu)?;
    let moments = adamw::Moments::f32_zeros(head.shape(), &Device::Cpu)?;
    for step in 1..=50 {
        let gradient = head.zeros_like()?;
        let (score, _) = linear_cross_entropy::forward_backward(
            &hidden,
            &head,
            &targets,
            None,
            1.0 / tokens as f64,
            Some(&gradient),
        )?;
        let params = adamw::Params {
            lr: 0.05,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step,
            grad_scale: 1.0,
        };
        adamw::step(adamw::Weights::F32(&head), &moments, &gradient, params)?;
        if step % 10 == 0 {
            let loss = score.loss_sum / score.num_targets as f64;
            let right = score.num_correct;
            writeln!(std::io::stdout(), "step {step}: loss {loss:.4}, {right} of {tokens} right")?;
        }
    }
    Ok(())
}
