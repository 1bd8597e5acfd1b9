//! Where the tasks of a product write: disjoint tiles of one matrix.
#![expect(unsafe_code, reason = "tasks write to disjoint tiles of one slice")]

use std::marker::PhantomData;

use half::bf16;

use crate::simd;

/// An element that sums are stored as.
pub(crate) trait Output: Copy + Send + Sync {
    /// Whether a sum loses digits when it is stored.
    const ROUNDS: bool;

    /// Stores sums, or adds them to what is there.
    fn store(to: &mut [Self], sums: &[f32], add: bool);

    /// The same for 32 sums. Sums too small for a normal bf16 become 0, as tiles make them.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_line(to: &mut [Self; 32], sums: &[f32; 32], add: bool);

    /// Stores 32 sums past the caches, where that can be done; visible to other threads after a
    /// store fence.
    ///
    /// # Safety
    /// The CPU has the instructions, and `to` is aligned to 64 bytes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_line(to: &mut [Self; 32], sums: &[f32; 32]);
}

impl Output for f32 {
    const ROUNDS: bool = false;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    unsafe fn store_line(to: &mut [f32; 32], sums: &[f32; 32], add: bool) {
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = if add { *to + sum } else { *sum };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    unsafe fn stream_line(to: &mut [f32; 32], sums: &[f32; 32]) {
        use std::arch::x86_64::{_mm512_loadu_ps, _mm512_stream_ps};
        // SAFETY: both hold 32 values; the caller vouches for the alignment.
        unsafe {
            _mm512_stream_ps(to.as_mut_ptr(), _mm512_loadu_ps(sums.as_ptr()));
            _mm512_stream_ps(to[16..].as_mut_ptr(), _mm512_loadu_ps(sums[16..].as_ptr()));
        }
    }

    fn store(to: &mut [f32], sums: &[f32], add: bool) {
        if add {
            simd::vectorized(|| to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum));
        } else {
            to.copy_from_slice(sums);
        }
    }
}

impl Output for bf16 {
    const ROUNDS: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    unsafe fn store_line(to: &mut [bf16; 32], sums: &[f32; 32], add: bool) {
        use std::arch::x86_64::{
            __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_si512,
        };
        let mut sums = *sums;
        if add {
            sums.iter_mut().zip(&*to).for_each(|(sum, to)| *sum += to.to_f32());
        }
        // SAFETY: both arrays hold 32 values; the vector types are plain bits.
        unsafe {
            let (low, high) =
                (_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums[16..].as_ptr()));
            let both = _mm512_cvtne2ps_pbh(high, low);
            let both = std::mem::transmute::<__m512bh, __m512i>(both);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    unsafe fn stream_line(to: &mut [bf16; 32], sums: &[f32; 32]) {
        // What is rounded is what the next op reads.
        // SAFETY: the caller vouches for the instructions.
        unsafe { Self::store_line(to, sums, false) }
    }

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

/// Asks for a cache line, into the core's outer cache.
#[cfg(target_arch = "x86_64")]
fn prefetch<O>(at: *const O) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: it reads nothing, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
}

/// There is no stable way to ask.
#[cfg(not(target_arch = "x86_64"))]
fn prefetch<O>(_: *const O) {}

/// Smaller outputs may still be in a cache when they are read.
const STREAMED_BYTES: usize = 1 << 20;

/// A matrix `[rows, columns]` whose rows are `row_stride` apart, written tile by tile.
pub(crate) struct Tiles<'a, O> {
    at: *mut O,
    rows: usize,
    columns: usize,
    row_stride: usize,
    /// Whether it is large, and its rows of squares begin at cache lines.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "no store goes past the caches")
    )]
    streams: bool,
    life: PhantomData<&'a mut [O]>,
}

// SAFETY: the pointer stands for a unique borrow of elements that may be sent, and the only methods
// that write through a shared reference are given disjoint tiles by the loops around the kernels.
unsafe impl<O: Output> Sync for Tiles<'_, O> {}

impl<'a, O: Output> Tiles<'a, O> {
    pub(crate) fn new(out: &'a mut [O], rows: usize, columns: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 { 0 } else { (rows - 1) * row_stride + columns };
        assert!(columns <= row_stride.max(columns) && needed <= out.len(), "{rows} x {columns}");
        assert!(rows <= 1 || columns <= row_stride, "rows of {columns} every {row_stride}");
        let at = out.as_mut_ptr();
        let lines = |bytes: usize| bytes.is_multiple_of(64);
        let streams = needed * size_of::<O>() >= STREAMED_BYTES
            && lines(at.addr())
            && lines(row_stride * size_of::<O>());
        Self { at, rows, columns, row_stride, streams, life: PhantomData }
    }

    /// The same, which is written more than once, and so always through the caches.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn cached(mut self) -> Self {
        self.streams = false;
        self
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

    /// The same for a tile of 32 × 32, by AVX-512 BF16, which the CPU must have.
    ///
    /// # Safety
    /// The CPU has the instructions.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn write_square(
        &self,
        [row, column]: [usize; 2],
        sums: &[f32],
        width: usize,
        add: bool,
    ) {
        assert!(row + 32 <= self.rows && column + 32 <= self.columns, "a tile outside");
        for (i, sums) in sums.chunks(width).take(32).enumerate() {
            let sums = sums.first_chunk().expect("32 sums a row");
            // SAFETY: as in `write`; the caller vouches for the instructions.
            unsafe {
                let at = self.at.add((row + i) * self.row_stride + column);
                if self.streams && !add && column.is_multiple_of(32) {
                    O::stream_line(&mut *at.cast(), sums);
                } else {
                    O::store_line(&mut *at.cast(), sums, add);
                }
            }
        }
    }

    /// Asks for the cache lines of a tile that is to be written when its sums are there: memory is
    /// read while they are computed.
    pub(crate) fn prefetch(&self, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) {
        let columns = columns.min(self.columns - column);
        for i in row..(row + rows).min(self.rows) {
            for j in (0..columns).step_by(64 / size_of::<O>()) {
                prefetch(self.at.wrapping_add(i * self.row_stride + column + j));
            }
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
