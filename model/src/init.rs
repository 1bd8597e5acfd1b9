//! Fresh weights.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::params::shapes;

/// Weights by the names of safetensors files: matrices normal with `initializer_range`, norms
/// neutral, biases 0. The same seed gives the same bits everywhere.
pub(crate) fn fresh(
    config: &ModelConfig,
    seed: u64,
    dtype: DType,
    device: &Device,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    let neutral = if config.unit_offset_norm { 0.0 } else { 1.0 };
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let stream = index as u64;
        let value = match (shape.as_slice(), dtype) {
            // A matrix in bf16 never exists in f32.
            (&[rows, columns], DType::BF16) => {
                let value = normal_at(seed, stream, config.initializer_range);
                let values: Vec<bf16> = (0..(rows * columns) as u64)
                    .into_par_iter()
                    .map(|i| bf16::from_f32(value(i)))
                    .collect();
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            (&[rows, columns], _) => {
                let values = normal(seed, stream, rows * columns, config.initializer_range);
                Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
            _ => {
                let value = if name.ends_with(".bias") { 0.0 } else { neutral };
                Tensor::full(value, shape, &Device::Cpu)?.to_dtype(dtype)?
            }
        };
        Ok((name, value.to_device(device)?))
    };
    shapes(config).into_iter().enumerate().map(tensor).collect()
}

/// Tensors of the same names and shapes without memory: one zero, seen at every place.
pub(crate) fn hollow(
    config: &ModelConfig,
    dtype: DType,
    device: &Device,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    let zero = Tensor::zeros(1, dtype, device)?;
    let tensor = |(name, shape): (String, Vec<usize>)| Ok((name, zero.broadcast_as(shape)?));
    shapes(config).into_iter().map(tensor).collect()
}

/// `count` values of a normal distribution with standard deviation `deviation`, by Box and Muller
/// from the counter-based generator: value `i` of stream `stream` depends on nothing else.
pub(crate) fn normal(seed: u64, stream: u64, count: usize, deviation: f64) -> Vec<f32> {
    (0..count as u64).into_par_iter().map(normal_at(seed, stream, deviation)).collect()
}

fn normal_at(seed: u64, stream: u64, deviation: f64) -> impl Fn(u64) -> f32 + Sync + Send {
    move |i| {
        let radius = (-2.0 * (1.0 - uniform(seed, stream, 2 * i)).ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform(seed, stream, 2 * i + 1);
        (radius * angle.cos() * deviation) as f32
    }
}

/// `count` values spread evenly over `(-bound, bound)`.
pub(crate) fn uniform_within(seed: u64, stream: u64, count: usize, bound: f64) -> Vec<f32> {
    (0..count as u64).map(|i| ((2.0 * uniform(seed, stream, i) - 1.0) * bound) as f32).collect()
}

/// A number in `[0, 1)` from three counters.
fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    let key = mix(seed ^ mix(stream.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    let bits = mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_is_normal() {
        let values = normal(7, 3, 100_000, 0.5);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = normal(7, 3, 4, 1.0);
        assert_eq!(first, normal(7, 3, 9, 1.0)[..4]);
        assert_ne!(first, normal(8, 3, 4, 1.0));
        assert_ne!(first, normal(7, 4, 4, 1.0));
    }
}
