//! Where the tasks of a product write: disjoint tiles of one matrix.
#![expect(unsafe_code, reason = "tasks write to disjoint tiles of one slice")]

use std::marker::PhantomData;

use half::bf16;

use crate::simd;

/// An element that sums are stored as.
pub(crate) trait Output: Copy + Send + Sync {
    /// Stores sums, or adds them to what is there.
    fn store(to: &mut [Self], sums: &[f32], add: bool);
}

impl Output for f32 {
    fn store(to: &mut [f32], sums: &[f32], add: bool) {
        if add {
            simd::vectorized(|| to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum));
        } else {
            to.copy_from_slice(sums);
        }
    }
}

impl Output for bf16 {
    fn store(to: &mut [bf16], sums: &[f32], add: bool) {
        simd::vectorized(|| {
            if add {
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = simd::to_bf16(to.to_f32() + sum);
                }
            } else {
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to = simd::to_bf16(*sum));
            }
        });
    }
}

/// A matrix `[rows, columns]` whose rows are `row_stride` apart, written tile by tile.
pub(crate) struct Tiles<'a, O> {
    at: *mut O,
    rows: usize,
    columns: usize,
    row_stride: usize,
    life: PhantomData<&'a mut [O]>,
}

// SAFETY: the pointer stands for a unique borrow of elements that may be sent, and the only method
// that writes through a shared reference is given disjoint tiles by `blocking`.
unsafe impl<O: Output> Sync for Tiles<'_, O> {}

impl<'a, O: Output> Tiles<'a, O> {
    pub(crate) fn new(out: &'a mut [O], rows: usize, columns: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(columns <= row_stride.max(columns) && needed <= out.len(), "{rows} x {columns}");
        assert!(rows <= 1 || columns <= row_stride, "rows of {columns} every {row_stride}");
        Self { at: out.as_mut_ptr(), rows, columns, row_stride, life: PhantomData }
    }

    /// Writes `sums` (rows `width` apart) to the tile of `size` at `place`. No two tasks may be
    /// given tiles that overlap.
    pub(crate) fn write(
        &self,
        place: [usize; 2],
        size: [usize; 2],
        sums: &[f32],
        width: usize,
        add: bool,
    ) {
        let [row, column] = place;
        let [rows, columns] = size;
        assert!(row + rows <= self.rows && column + columns <= self.columns, "a tile outside");
        for i in 0..rows {
            // SAFETY: the tile lies inside of the matrix, which `new` saw to lie inside of the
            // slice; tiles of a product do not overlap.
            let to = unsafe {
                let at = self.at.add((row + i) * self.row_stride + column);
                std::slice::from_raw_parts_mut(at, columns)
            };
            O::store(to, &sums[i * width..][..columns], add);
        }
    }

    /// Stores zero everywhere.
    pub(crate) fn zero(&self) {
        let zeros = vec![0.0; self.columns];
        for row in 0..self.rows {
            self.write([row, 0], [1, self.columns], &zeros, self.columns, false);
        }
    }
}
