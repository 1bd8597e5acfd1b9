//! `kernels/cuda/embedding.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{Device, Result, Tensor};

use super::launch::{Launch, address, arguments, empty, suffix, threads_of_row};
use super::program::{Program, source};
use super::upload::upload;

static PROGRAM: Program = source!("embedding");

/// Threads of a block of the gradient, and columns that it adds up.
const GRADIENT_THREADS: usize = 64;
const GRADIENT_COLUMNS: usize = 256;

pub(crate) fn forward(table: &Tensor, ids: &[u32], scale: Option<f64>) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        candle_core::bail!("token {id} is outside of a table of {rows} rows");
    }
    let table = table.contiguous()?;
    let on_device = upload(ids, ids.len(), table.device())?;
    let y = empty((ids.len(), width), table.dtype(), table.device())?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("embedding_forward_{}", suffix(table.dtype())),
        head_dim: None,
        grid: [ids.len(), 1, 1],
        block: threads_of_row(width, table.dtype(), 256),
        shared: 0,
    };
    let arguments = arguments![
        address(&table)?,
        address(&on_device)?,
        address(&y)?,
        width as u32,
        scale.unwrap_or(1.0) as f32,
    ];
    // SAFETY: each id is a row of the table, and y has a row for each.
    unsafe { launch.run(table.device(), &arguments) }?;
    Ok(y)
}

/// Adds the rows of `dy` to the rows of `d_table` that `ids` name; they were checked.
pub(crate) fn add_gradient(
    d_table: &Tensor,
    ids: &[u32],
    scale: Option<f64>,
    dy: &Tensor,
    skip: Option<u32>,
) -> Result<()> {
    let width = d_table.dim(1)?;
    let by_row = ByRow::of(ids, skip);
    if by_row.rows.is_empty() {
        return Ok(());
    }
    let (dy, device) = (dy.contiguous()?, d_table.device());
    let [rows, offsets, tokens] = by_row.on(device)?;
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!(
            "embedding_add_gradient_{}_{}",
            suffix(dy.dtype()),
            suffix(d_table.dtype())
        ),
        head_dim: None,
        grid: [by_row.rows.len(), width.div_ceil(GRADIENT_COLUMNS), 1],
        block: GRADIENT_THREADS,
        shared: 0,
    };
    let arguments = arguments![
        address(&dy)?,
        address(d_table)?,
        address(&rows)?,
        address(&offsets)?,
        address(&tokens)?,
        width as u32,
        scale.unwrap_or(1.0) as f32,
    ];
    // SAFETY: each row is one of the table, each token one of dy, and the last offset is their number.
    unsafe { launch.run(device, &arguments) }
}

/// Tokens by the row that they look up: those of `rows[u]` are `tokens[offsets[u]..offsets[u + 1]]`,
/// in their order.
struct ByRow {
    rows: Vec<u32>,
    offsets: Vec<u32>,
    tokens: Vec<u32>,
}

impl ByRow {
    fn of(ids: &[u32], skip: Option<u32>) -> Self {
        let mut tokens: Vec<u32> =
            (0..ids.len() as u32).filter(|token| Some(ids[*token as usize]) != skip).collect();
        tokens.sort_by_key(|token| ids[*token as usize]);
        let (mut rows, mut offsets) = (vec![], vec![]);
        for (place, token) in (0u32..).zip(&tokens) {
            let row = ids[*token as usize];
            if rows.last() != Some(&row) {
                rows.push(row);
                offsets.push(place);
            }
        }
        offsets.push(tokens.len() as u32);
        Self { rows, offsets, tokens }
    }

    fn on(&self, device: &Device) -> Result<[Tensor; 3]> {
        let there = |list: &[u32]| upload(list, list.len(), device);
        Ok([there(&self.rows)?, there(&self.offsets)?, there(&self.tokens)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_gathered_by_row_in_their_order() {
        let by_row = ByRow::of(&[5, 2, 5, 9, 2, 5], Some(9));
        assert_eq!(by_row.rows, [2, 5]);
        assert_eq!(by_row.offsets, [0, 2, 5]);
        assert_eq!(by_row.tokens, [1, 4, 0, 2, 5]);
    }
}
