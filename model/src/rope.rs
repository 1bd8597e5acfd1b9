//! The angles of rotary position embeddings.

use candle_core::{DType, Device, Tensor};
use chandler_kernels::device;
use rayon::prelude::*;

use crate::ModelError;
use crate::config::{RopeParameters, RopeScaling};

/// cos and sin, `[N, D/2]` each, of every token's position.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

/// Positions below which their angles are not worth sharing out among threads.
const ROWS_OF_TASK: usize = 64;

/// The angles of tokens at `positions`.
///
/// Everything is computed in f32 and in the order of transformers, whose rounding of the angle
/// (position times frequency) becomes part of what a model learned.
pub(crate) fn angles(
    parameters: &RopeParameters,
    head_dim: usize,
    positions: &[u32],
    dtype: DType,
    device: &Device,
) -> Result<Angles, ModelError> {
    let length = positions.iter().max().map_or(0, |last| *last as usize + 1);
    let frequencies = inverse_frequencies(parameters, head_dim, length);
    let factor = attention_factor(parameters);
    // Documents have positions in common, which are worked out once.
    let shared: Option<Vec<u32>> = (length < positions.len()).then(|| (0..length as u32).collect());
    let places = match &shared {
        Some(_) => Some(device::upload(positions.to_vec(), positions.len(), device)?),
        None => None,
    };
    let of = |function: fn(f32) -> f32| {
        let rows = shared.as_deref().unwrap_or(positions);
        let angles = device::upload(
            table(rows, &frequencies, |angle| function(angle) * factor),
            (rows.len(), frequencies.len()),
            device,
        )?;
        let angles = match &places {
            Some(places) => angles.index_select(places, 0)?,
            None => angles,
        };
        angles.to_dtype(dtype)
    };
    Ok(Angles { cos: of(f32::cos)?, sin: of(f32::sin)? })
}

/// `of` each angle: a row for each position, and in it a number for each frequency.
fn table(positions: &[u32], frequencies: &[f32], of: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut values = vec![0.0; positions.len() * frequencies.len()];
    let rows = values.par_chunks_mut(frequencies.len().max(1)).zip(positions);
    rows.with_min_len(ROWS_OF_TASK).for_each(|(row, position)| {
        for (value, frequency) in row.iter_mut().zip(frequencies) {
            *value = of(*position as f32 * frequency);
        }
    });
    values
}

/// Factor on cos and sin.
fn attention_factor(parameters: &RopeParameters) -> f32 {
    match parameters.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
        _ => 1.0,
    }
}

/// Radians per position of each of the `head_dim / 2` pairs, for a text of `length` tokens.
fn inverse_frequencies(parameters: &RopeParameters, head_dim: usize, length: usize) -> Vec<f32> {
    let theta = parameters.theta;
    match &parameters.scaling {
        RopeScaling::Default => powers(theta, head_dim),
        RopeScaling::Linear { factor } => {
            powers(theta, head_dim).into_iter().map(|f| f / *factor as f32).collect()
        }
        RopeScaling::Dynamic { factor, max_position_embeddings } => {
            let (length, trained) =
                (length.max(*max_position_embeddings) as f64, *max_position_embeddings as f64);
            let dim = head_dim as f64;
            let stretch = (factor * length / trained - (factor - 1.0)).powf(dim / (dim - 2.0));
            powers(theta * stretch, head_dim)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f32;
            let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
            let scale = *factor as f32;
            let stretched = |f: f32| {
                let wavelength = std::f32::consts::TAU / f;
                if wavelength > original / low {
                    f / scale
                } else if wavelength < original / high {
                    f
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / scale + smooth * f
                }
            };
            powers(theta, head_dim).into_iter().map(stretched).collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            let correction = |rotations: f64| {
                let wavelength =
                    original_max_position_embeddings / (rotations * std::f64::consts::TAU);
                head_dim as f64 * wavelength.ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0) as f32, high.min(head_dim as f64 - 1.0) as f32);
            let high = if (high - low).abs() == 0.0 { high + 0.001 } else { high };
            let ramped = |(pair, f): (usize, f32)| {
                let kept = 1.0 - ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                f / *factor as f32 * (1.0 - kept) + f * kept
            };
            powers(theta, head_dim).into_iter().enumerate().map(ramped).collect()
        }
    }
}

/// `θ^(−2i/D)`.
fn powers(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|pair| 1.0 / (theta as f32).powf(2.0 * pair as f32 / head_dim as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_at_one_position_have_its_angles() -> Result<(), ModelError> {
        let scaling = RopeScaling::Dynamic { factor: 2.0, max_position_embeddings: 32 };
        let parameters = RopeParameters { theta: 10_000.0, scaling };
        let of = |positions: &[u32]| -> Result<[Vec<Vec<f32>>; 2], ModelError> {
            let angles = angles(&parameters, 16, positions, DType::F32, &Device::Cpu)?;
            Ok([angles.cos.to_vec2()?, angles.sin.to_vec2()?])
        };
        let each: Vec<u32> = (0..100).rev().collect();
        let shared: Vec<u32> = (0..100).chain(7..31).chain([99, 0, 99]).collect();
        let (each, shared_angles) = (of(&each)?, of(&shared)?);
        for (each, shared_angles) in each.iter().zip(&shared_angles) {
            for (position, row) in shared.iter().zip(shared_angles) {
                assert_eq!(*row, each[99 - *position as usize]);
            }
        }
        Ok(())
    }
}
