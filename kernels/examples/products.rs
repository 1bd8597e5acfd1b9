//! Speed of the three products of training at the shapes that the models use.
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::linear;

fn main() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        for (n, i, o) in [
            (512, 1024, 3072),
            (2048, 2048, 2048),
            (2048, 512, 1536),
            (2048, 1536, 512),
            (2048, 512, 512),
            (2048, 512, 32768),
        ] {
            let x = Tensor::randn(0f32, 1.0, (n, i), &Device::Cpu)?.to_dtype(dtype)?;
            let w = Tensor::randn(0f32, 1.0, (o, i), &Device::Cpu)?.to_dtype(dtype)?;
            let dy = Tensor::randn(0f32, 1.0, (n, o), &Device::Cpu)?.to_dtype(dtype)?;
            let time = |f: &dyn Fn() -> Result<Tensor>| -> Result<f64> {
                let mut best = f64::INFINITY;
                f()?;
                for _ in 0..7 {
                    let start = Instant::now();
                    f()?;
                    best = best.min(start.elapsed().as_secs_f64());
                }
                Ok(2.0 * (n * i * o) as f64 / best / 1e9)
            };
            let forward = time(&|| linear::forward(&x, &w, None))?;
            let input = time(&|| linear::backward_input(&w, &dy))?;
            let weight = time(&|| linear::backward_weight(&x, &dy))?;
            println!(
                "{dtype:?} {n}x{i}x{o}: forward {forward:.0}, input {input:.0}, weight {weight:.0} GFLOP/s"
            );
        }
    }
    Ok(())
}
