//! A global allocator that counts what is allocated.
//!
//! The most that a process ever held of its heap is what a [plan](crate::plan()) is held against:
//! the resident set of the operating system also has what the allocator keeps for later.
//!
//! ```
//! use std::alloc::System;
//! use chandler_vram::{CountingAllocator, counting};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);
//!
//! # fn main() {
//! let before = counting::live_bytes();
//! let block = vec![0u8; 1 << 20];
//! assert_eq!(counting::live_bytes(), before.or(Some(0)).map(|bytes| bytes + (1 << 20)));
//! drop(block);
//! counting::reset_high_water();
//! assert_eq!(counting::high_water_bytes(), counting::live_bytes());
//! # }
//! ```
#![expect(unsafe_code, reason = "an allocator is made of unsafe functions")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Smaller blocks are not counted: there are many of them, and together they are little.
pub const SMALLEST_COUNTED_BYTES: usize = 4096;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicU64 = AtomicU64::new(0);
static HIGH_WATER: AtomicU64 = AtomicU64::new(0);
/// `u64::MAX` where there is none.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Bytes of the blocks that are allocated now; `None` where no [`CountingAllocator`] has had a
/// block to count.
pub fn live_bytes() -> Option<u64> {
    counted(&LIVE)
}

/// The most that [`live_bytes`] was since the start or since [`reset_high_water`].
pub fn high_water_bytes() -> Option<u64> {
    counted(&HIGH_WATER)
}

/// Lets the high-water mark begin again at what is live now. Meant for a moment at which no other
/// thread allocates.
pub fn reset_high_water() {
    HIGH_WATER.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// A limit on what [`live_bytes`] may come to, for whoever asks [`admits`] before allocating;
/// `None` takes it away. An allocation that did not ask is never refused, but counts against the
/// next one that does.
pub fn set_limit(bytes: Option<u64>) {
    LIMIT.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The limit, where there is one.
pub fn limit_bytes() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit < u64::MAX)
}

/// Whether so many bytes more stay within the limit.
pub fn admits(bytes: u64) -> bool {
    LIVE.load(Ordering::Relaxed).saturating_add(bytes) <= LIMIT.load(Ordering::Relaxed)
}

fn counted(bytes: &AtomicU64) -> Option<u64> {
    COUNTS.load(Ordering::Relaxed).then(|| bytes.load(Ordering::Relaxed))
}

/// Counts blocks of 4 KiB and more on their way to and from the allocator `A`, all instances in
/// the same books.
#[derive(Debug, Default, Clone, Copy)]
pub struct CountingAllocator<A = System> {
    inner: A,
}

impl<A> CountingAllocator<A> {
    /// Counts what `inner` allocates.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

#[inline]
fn add(bytes: usize) {
    if bytes >= SMALLEST_COUNTED_BYTES {
        let bytes = bytes as u64;
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if live > HIGH_WATER.load(Ordering::Relaxed) {
            HIGH_WATER.fetch_max(live, Ordering::Relaxed);
            COUNTS.store(true, Ordering::Relaxed);
        }
    }
}

#[inline]
fn subtract(bytes: usize) {
    if bytes >= SMALLEST_COUNTED_BYTES {
        LIVE.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `inner`, which keeps the contract, with the caller's own arguments;
// counting neither allocates nor unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is `inner`'s.
        let block = unsafe { self.inner.alloc(layout) };
        if !block.is_null() {
            add(layout.size());
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is `inner`'s.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        if !block.is_null() {
            add(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the caller's promise is `inner`'s, whose block this is.
        unsafe { self.inner.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is `inner`'s, whose block this is.
        let moved = unsafe { self.inner.realloc(block, layout, new_size) };
        if !moved.is_null() {
            subtract(layout.size());
            add(new_size);
        }
        moved
    }
}
