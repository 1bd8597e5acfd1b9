//! Rows gathered and gradients added up on the CPU.

use candle_core::{Result, Tensor, bail};

use crate::cpu::{self, Real};
use crate::fresh::fresh;
use crate::{simd, tasks};

pub(super) fn forward<T: Real>(
    table: &Tensor,
    input_ids: &Tensor,
    scale: Option<f64>,
) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    let ids = input_ids.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        bail!("token {id} is outside of a table of {rows} rows");
    }
    cpu::with([table], |[table]: [&[T]; 1]| {
        let mut y = fresh::<T>(ids.len() * width)?;
        tasks::rows(width, [&mut y], |first, [y]| {
            for (id, y) in ids[first..].iter().zip(y.chunks_exact_mut(width.max(1))) {
                let row = &table[*id as usize * width..][..width];
                match scale {
                    None => y.copy_from_slice(row),
                    Some(scale) => simd::vectorized(
                        #[inline(always)]
                        || scale_row(row, scale as f32, y),
                    ),
                }
            }
        });
        cpu::tensor(y, (ids.len(), width))
    })
}

#[inline(always)]
fn scale_row<T: Real>(row: &[T], scale: f32, y: &mut [T]) {
    for (y, x) in y.iter_mut().zip(row) {
        *y = T::narrow(x.wide() * scale);
    }
}

/// A used row of the table's gradient, and the tokens that use it in their order.
struct Used<'a, G> {
    row: &'a mut [G],
    tokens: &'a [(u32, u32)],
}

/// `d_table` of type `G` is added to by gradients of type `T`; a row's sum is rounded once.
pub(super) fn add_gradient<T: Real, G: Real>(
    d_table: &Tensor,
    ids: &[u32],
    scale: Option<f64>,
    dy: &Tensor,
    skip: Option<u32>,
) -> Result<()> {
    let (tokens, width) = dy.dims2()?;
    let mut by_row: Vec<(u32, u32)> =
        ids.iter().copied().zip(0u32..).filter(|(id, _)| Some(*id) != skip).collect();
    by_row.sort_unstable();
    let scale = scale.unwrap_or(1.0) as f32;
    cpu::with([dy], |[dy]: [&[T]; 1]| {
        cpu::update(d_table, |d_table: &mut [G]| {
            let used = used_rows(d_table, &by_row, width);
            tasks::each(used, tokens * width, |_, Used { row, tokens }| {
                simd::vectorized(
                    #[inline(always)]
                    || {
                        let mut sum: Vec<f32> = row.iter().map(|x| x.wide()).collect();
                        for (_, token) in tokens {
                            add_row(&mut sum, &dy[*token as usize * width..][..width], scale);
                        }
                        row.iter_mut().zip(sum).for_each(|(row, sum)| *row = G::narrow(sum));
                    },
                );
            });
            Ok(())
        })
    })
}

/// Cuts the used rows out of the gradient; `by_row` is sorted.
fn used_rows<'a, G>(
    d_table: &'a mut [G],
    by_row: &'a [(u32, u32)],
    width: usize,
) -> Vec<Used<'a, G>> {
    let (mut rest, mut next) = (d_table, 0);
    let mut used = Vec::new();
    for tokens in by_row.chunk_by(|a, b| a.0 == b.0) {
        let id = tokens[0].0 as usize;
        let (_, from_row) = rest.split_at_mut((id - next) * width);
        let (row, after) = from_row.split_at_mut(width);
        used.push(Used { row, tokens });
        (rest, next) = (after, id + 1);
    }
    used
}

#[inline(always)]
fn add_row<T: Real>(row: &mut [f32], dy: &[T], scale: f32) {
    for (sum, dy) in row.iter_mut().zip(dy) {
        *sum = dy.wide().mul_add(scale, *sum);
    }
}
