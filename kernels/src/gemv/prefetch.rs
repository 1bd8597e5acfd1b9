//! Asking for memory before it is needed.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "a prefetch takes a pointer that it never reads through")
)]

/// How far ahead of its use a weight is asked for, into L2: the CPU's own prefetcher falls behind
/// where several products are made of each register that is read.
pub(super) const AHEAD_BYTES: usize = 8192;

/// Asks for the cache line that lies `bytes` behind the start of `values`, be it inside or not.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T], bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch may name any address; what is there is not read.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().cast::<i8>().wrapping_add(bytes));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, bytes);
}
