//! Token embedding: rows of a table, and a gradient that adds to the used rows alone.

use candle_core::{Result, Tensor};

use crate::accumulation_dtype;

/// `table [V, E]`, `input_ids [N]` (u32) → `[N, E]`, times `scale` (Gemma's `√E`, rounded to the
/// table's dtype as there), in the table's dtype.
pub fn forward(table: &Tensor, input_ids: &Tensor, scale: Option<f64>) -> Result<Tensor> {
    let rows = table.index_select(input_ids, 0)?;
    match scale {
        Some(scale) => rows * scale,
        None => Ok(rows),
    }
}

/// Adds the gradient of the used rows to `d_table [V, E]` (f32 or f64): `dy [N, E]` → a new
/// `d_table`.
pub fn backward(
    d_table: &Tensor,
    input_ids: &Tensor,
    scale: Option<f64>,
    dy: &Tensor,
) -> Result<Tensor> {
    let dy = dy.to_dtype(accumulation_dtype(dy.dtype()))?;
    let dy = match scale {
        Some(scale) => (dy * scale)?,
        None => dy,
    };
    d_table.index_add(input_ids, &dy.contiguous()?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::Device;

    #[test]
    fn matches_the_composition() -> Result<()> {
        let ids = Tensor::new(&[2u32, 0, 2, 5], &Device::Cpu)?;
        for scale in [None, Some(2.5)] {
            check::pair(
                &[&[6, 3]],
                |x| x[0].index_select(&ids, 0)? * scale.unwrap_or(1.0),
                |x| forward(&x[0], &ids, scale),
                |x, dy| Ok(vec![backward(&x[0].zeros_like()?, &ids, scale, dy)?]),
            )?;
        }
        Ok(())
    }
}
