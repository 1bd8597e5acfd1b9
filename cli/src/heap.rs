//! The C library's heap: keep pages while training, give them back after.
//!
//! Every op of a step allocates outputs of some megabytes and the next one frees them. As glibc
//! comes, each such block is a mapping of its own, whose pages the kernel zeroes at first touch:
//! one sixth of a training step of the small bench shape. Told to keep what is freed, the heap
//! serves the next step from the same pages; [`give_back`] returns them when an evaluation or a
//! job has ended.
#![cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "calls into the C library")
)]

/// Heaps that threads allocate from side by side; glibc would make eight for every core. Of one alone,
/// the first, the unused end goes back when it is asked for: any other keeps the pages at its end that
/// were ever touched.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MOST_ARENAS: i32 = 1;

/// Large blocks come from the heap, and what is freed stays in the process. Called once, at start.
pub fn keep_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const BEYOND_ANY: i32 = i32::MAX;
        for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
            // SAFETY: a plain setting of the allocator, with values from its manual.
            unsafe {
                libc::mallopt(parameter, BEYOND_ANY);
            }
        }
        // SAFETY: as above; the heap grows by this much at a time, and what one thread frees serves
        // every other.
        unsafe {
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
            libc::mallopt(libc::M_ARENA_MAX, MOST_ARENAS);
        }
    }
}

/// Gives the buffers of the ops and the free pages of the heap back to the system.
pub fn give_back() {
    chandler_kernels::scratch::release();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: returns free pages alone; every live block stays where it is.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chandler_vram::HostMeter;

    #[test]
    fn what_was_freed_goes_back() {
        keep_pages();
        let rss = || HostMeter::new().read_host().rss;
        let before = rss();
        let blocks: Vec<Vec<u8>> = (0..64).map(|i| vec![i; 4 << 20]).collect();
        let (Some(before), Some(full)) = (before, rss()) else {
            return eprintln!("no reading of the resident set here: skipped");
        };
        assert!(full >= before + (200 << 20), "{before} {full}");
        drop(blocks);
        give_back();
        let after = rss().unwrap_or(u64::MAX);
        assert!(after < before + (64 << 20), "{before} {full} {after}");
    }
}
