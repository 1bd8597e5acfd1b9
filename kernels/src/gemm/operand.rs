//! A matrix as a product sees it: elements by their place along the kept and the summed dimension.

/// `[len, depth]`: element `(i, k)` lies at `i · stride + k · depth_stride`.
///
/// The left side of `A·B` is `(row, k)`, the right side `(column, k)`, so a transposed matrix is
/// the same memory with its strides exchanged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) len: usize,
    pub(crate) depth: usize,
    pub(crate) stride: usize,
    pub(crate) depth_stride: usize,
}

impl<'a, T> Operand<'a, T> {
    /// `data` is `[len, depth]`, row-major.
    pub(crate) fn rows(data: &'a [T], len: usize, depth: usize) -> Self {
        assert_eq!(data.len(), len * depth, "a matrix of {len} x {depth}");
        Self { data, len, depth, stride: depth, depth_stride: 1 }
    }

    /// `data` is `[depth, len]`, row-major.
    pub(crate) fn columns(data: &'a [T], len: usize, depth: usize) -> Self {
        assert_eq!(data.len(), len * depth, "a matrix of {depth} x {len}");
        Self { data, len, depth, stride: 1, depth_stride: len }
    }

    /// The rows from `first` on, one at least and `most` at most, of a matrix with some depth.
    pub(crate) fn part(&self, first: usize, most: usize) -> Self {
        let len = (self.len - first).min(most);
        let last = (len - 1) * self.stride + (self.depth - 1) * self.depth_stride;
        Self { data: &self.data[first * self.stride..][..=last], len, ..*self }
    }

    /// Rows of a wider matrix: `[len, depth]` whose rows are `stride` apart.
    pub(crate) fn strided_rows(data: &'a [T], len: usize, depth: usize, stride: usize) -> Self {
        assert!(len == 0 || depth <= stride && (len - 1) * stride + depth <= data.len());
        Self { data, len, depth, stride, depth_stride: 1 }
    }

    /// Columns of a wider matrix: `[depth, len]` whose rows are `stride` apart.
    pub(crate) fn strided_columns(data: &'a [T], len: usize, depth: usize, stride: usize) -> Self {
        assert!(depth == 0 || len <= stride && (depth - 1) * stride + len <= data.len());
        Self { data, len, depth, stride: 1, depth_stride: stride }
    }
}
