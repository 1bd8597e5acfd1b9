//! Buffers that are used again: packed panels and partial results of the ops.
//!
//! A fresh buffer costs a page fault for every 4 KiB, which is more than filling it, so buffers go
//! back to a pool. [`held_bytes`] says how much the pool has, [`release`] gives it back.
#![expect(unsafe_code, reason = "one kind of buffer for all plain element types")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::Result;
use half::bf16;

use crate::memory::request;

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

static POOL: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all buffers, those in use and those that wait for the next use.
pub fn held_bytes() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Frees the buffers that nobody uses.
pub fn release() {
    let idle = std::mem::take(&mut *POOL.lock().unwrap_or_else(PoisonError::into_inner));
    for lines in &idle {
        HELD.fetch_sub(bytes_of(lines), Ordering::Relaxed);
    }
}

fn bytes_of(lines: &[Line]) -> usize {
    std::mem::size_of_val(lines)
}

/// Element types for which every bit pattern is a value.
///
/// # Safety
/// The type has no padding, no invalid bit patterns, and an alignment of at most 64.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers without padding; all of their bit patterns are values.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for bf16 {}
// SAFETY: as above.
unsafe impl Plain for [bf16; 2] {}

/// `len` elements of unspecified value, aligned to 64 bytes.
pub(crate) struct Scratch<T: Plain> {
    lines: Vec<Line>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Plain> Scratch<T> {
    /// A buffer from the pool, or a new one.
    pub(crate) fn new(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        Self { lines: take(lines), len, element: PhantomData }
    }

    /// The same, if there is memory for it: for buffers that grow with the batch.
    pub(crate) fn request(len: usize) -> Result<Self> {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        let pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = pool.last().is_some_and(|largest| largest.len() >= lines);
        drop(pool);
        if !fits {
            request(lines * size_of::<Line>())?;
        }
        Ok(Self::new(len))
    }
}

/// The smallest idle buffer that is large enough; where there is none, a new one in place of the
/// largest.
fn take(lines: usize) -> Vec<Line> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = pool.iter().position(|idle| idle.len() >= lines);
    if let Some(at) = fits {
        return pool.remove(at);
    }
    let outgrown = pool.pop();
    drop(pool);
    if let Some(outgrown) = outgrown {
        HELD.fetch_sub(bytes_of(&outgrown), Ordering::Relaxed);
    }
    let new = vec![Line([0; 8]); lines];
    HELD.fetch_add(bytes_of(&new), Ordering::Relaxed);
    new
}

impl<T: Plain> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pool.partition_point(|idle| idle.len() < lines.len());
        pool.insert(at, lines);
    }
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold at least `len` elements, are aligned to 64 bytes and initialized,
        // and every bit pattern is a `T`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the borrow is unique because that of `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_has_the_length_that_was_asked_for() {
        let mut first = Scratch::<f32>::new(1000);
        first.fill(2.5);
        assert!(first.as_ptr().addr().is_multiple_of(64));
        drop(first);
        assert!(held_bytes() >= 4000);
        let second = Scratch::<bf16>::new(77);
        assert_eq!(second.len(), 77);
    }
}
