//! A global allocator for programs whose blocks are mostly tensors.
//!
//! Blocks of 4 KiB and more begin at a cache line, so that no vector load of a row spans two (a C
//! library's `malloc` puts a large block 16 bytes behind one). Where blocks of 1 MiB and more lie,
//! the system is asked to make huge pages, with which a pass over a large tensor finds its addresses
//! in the CPU's tables.
#![expect(unsafe_code, reason = "an allocator is made of unsafe functions")]
#![expect(clippy::cast_ptr_alignment, reason = "a pointer's place ends at a cache line")]

use std::alloc::{GlobalAlloc, Layout, System};

/// Smaller blocks are left as they are.
const SMALLEST_ALIGNED_BYTES: usize = 4096;
/// Large blocks lie side by side, so that a huge page may be shared by some.
#[cfg(target_os = "linux")]
const SMALLEST_HUGE_BYTES: usize = 1 << 20;
/// What lies behind a block is asked for too: the heap grows at its end, and whoever zeroes a new
/// block there has touched its pages before we see it.
#[cfg(target_os = "linux")]
const AHEAD_BYTES: usize = 64 << 20;
/// A huge page of most systems.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;
/// A cache line, and what a block begins at.
const LINE: usize = 64;
/// What the inner allocator must align to, so that there is room before a line for a pointer.
const INNER_ALIGN: usize = 16;

/// Places what `A` allocates.
#[derive(Debug, Default, Clone, Copy)]
pub struct TensorBlocks<A = System> {
    inner: A,
}

impl<A> TensorBlocks<A> {
    /// Places what `inner` allocates.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

/// What the inner allocator is asked for where a block is to be placed.
fn placed(layout: Layout) -> Option<Layout> {
    if layout.size() < SMALLEST_ALIGNED_BYTES || layout.align() > LINE {
        return None;
    }
    Layout::from_size_align(layout.size() + LINE, INNER_ALIGN).ok()
}

/// The first line in `room`, an address aligned to [`INNER_ALIGN`], that has a pointer's place before
/// it; `room` is written there.
///
/// # Safety
/// `room` has [`LINE`] bytes more than the block needs.
unsafe fn place(room: *mut u8) -> *mut u8 {
    if room.is_null() {
        return room;
    }
    let gap = LINE - room.addr() % LINE;
    // SAFETY: the gap is 16 to 64 bytes, which there are, and at least a pointer long.
    unsafe {
        let block = room.add(gap);
        block.cast::<*mut u8>().sub(1).write(room);
        block
    }
}

/// What [`place`] was given.
///
/// # Safety
/// `block` comes from there.
unsafe fn room_of(block: *mut u8) -> *mut u8 {
    // SAFETY: the pointer was written there, and nobody but this file knows of the place.
    unsafe { block.cast::<*mut u8>().sub(1).read() }
}

/// Asks for huge pages in which the block lies. Refused, nothing is lost: pages are then small.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(block: *mut u8, bytes: usize) {
    if block.is_null() || bytes < SMALLEST_HUGE_BYTES {
        return;
    }
    let before = block.addr() % HUGE_PAGE;
    let len = (before + bytes + AHEAD_BYTES).next_multiple_of(HUGE_PAGE);
    // SAFETY: the advice changes no content, neither of the block's nor of its neighbours' memory.
    // What is not mapped yet is refused after the rest has been advised, which is the usual case.
    let _refused = unsafe {
        let first = block.wrapping_sub(before).cast();
        rustix::mm::madvise(first, len, rustix::mm::Advice::LinuxHugepage)
    };
}

/// Asks for no more huge pages where large blocks lay or lie; the next large block asks anew. What is
/// in memory stays as it is. For a program at rest: else a small block where a large one lay has 2 MiB.
#[cfg(target_os = "linux")]
pub fn forget_huge_pages() -> std::io::Result<()> {
    for (first, end) in advised(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: as above. A mapping that has come in the place of one that was listed has smaller
        // pages.
        let done = unsafe {
            let place = std::ptr::without_provenance_mut(first);
            rustix::mm::madvise(place, end - first, rustix::mm::Advice::LinuxNoHugepage)
        };
        match done {
            // It has gone meanwhile.
            Ok(()) | Err(rustix::io::Errno::NOMEM | rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Other systems were asked for none.
#[cfg(not(target_os = "linux"))]
pub fn forget_huge_pages() -> std::io::Result<()> {
    Ok(())
}

/// First and end of the mappings that huge pages are asked for in, of a `smaps`.
#[cfg(target_os = "linux")]
fn advised(smaps: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let (first, end) = line.split_whitespace().next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some((address(first)?, address(end)?))
    };
    let (mut found, mut mapping) = (vec![], None);
    for line in smaps.lines() {
        mapping = range(line).or(mapping);
        let is_asked = line
            .strip_prefix("VmFlags:")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hg"));
        found.extend(mapping.filter(|_| is_asked));
    }
    found
}

/// Other systems make huge pages of their own accord, or none.
#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: *mut u8, _: usize) {}

// SAFETY: a block that is placed lies inside of one of `inner`'s that is a line longer, and is given
// back as the whole; all others go to and from `inner` as they are. Nothing here unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for TensorBlocks<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(room) = placed(layout) else {
            // SAFETY: the caller's promise is `inner`'s.
            return unsafe { self.inner.alloc(layout) };
        };
        // SAFETY: the layout is not of size zero; the room is a line longer than the block.
        let block = unsafe { place(self.inner.alloc(room)) };
        ask_for_huge_pages(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(room) = placed(layout) else {
            // SAFETY: the caller's promise is `inner`'s.
            return unsafe { self.inner.alloc_zeroed(layout) };
        };
        // SAFETY: as above. What `place` writes lies before the block, which stays zero.
        let block = unsafe { place(self.inner.alloc_zeroed(room)) };
        ask_for_huge_pages(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match placed(layout) {
            // SAFETY: the same layout was placed when the block was allocated.
            Some(room) => unsafe { self.inner.dealloc(room_of(block), room) },
            // SAFETY: the caller's promise is `inner`'s.
            None => unsafe { self.inner.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that makes a layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (placed(layout), placed(new_layout)) {
            // SAFETY: the caller's promise is `inner`'s.
            (None, None) => unsafe { self.inner.realloc(block, layout, new_size) },
            (Some(old), Some(new)) => {
                // SAFETY: the room of the block is moved whole. Its content lies as far behind the
                // new room's begin as behind the old one's, and both ends of the copy lie in it.
                let moved = unsafe {
                    let room = room_of(block);
                    let gap = block.offset_from_unsigned(room);
                    let room = self.inner.realloc(room, old, new.size());
                    if room.is_null() {
                        return room;
                    }
                    let kept = layout.size().min(new_size);
                    let moved = room.add(LINE - room.addr() % LINE);
                    std::ptr::copy(room.add(gap), moved, kept);
                    place(room)
                };
                ask_for_huge_pages(moved, new_size);
                moved
            }
            // SAFETY: both are blocks of at least as many bytes as are copied, and the caller's
            // promise holds for the old one.
            _ => unsafe {
                let moved = self.alloc(new_layout);
                if !moved.is_null() {
                    std::ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// What is asked for one block reaches beyond it, so only one test at a time has large ones.
    static ALONE: Mutex<()> = Mutex::new(());

    /// An allocator whose blocks begin at every place in a line in turn, and move when they grow.
    struct Shifting(std::sync::atomic::AtomicUsize);

    // SAFETY: blocks lie in blocks of the system that are longer by what they are shifted, which
    // stands in front of them.
    unsafe impl GlobalAlloc for Shifting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let turn = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let shift = 16 * (1 + turn % 4);
            // SAFETY: the layouts are not empty, and the shift lies in the block.
            unsafe {
                let outer = Layout::from_size_align_unchecked(layout.size() + 64, 64);
                let block = System.alloc(outer).add(shift);
                block.cast::<usize>().sub(1).write(shift);
                block
            }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: as the block was made.
            unsafe {
                let shift = block.cast::<usize>().sub(1).read();
                let outer = Layout::from_size_align_unchecked(layout.size() + 64, 64);
                System.dealloc(block.sub(shift), outer);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_are_asked_for_until_they_are_forgotten() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = TensorBlocks::new(System);
        let layout = Layout::from_size_align(8 << 20, 64).expect("a layout");
        let is_asked = |block: *mut u8| {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("a list of mappings");
            let place = block.addr() + (4 << 20);
            advised(&smaps).iter().any(|(first, end)| (*first..*end).contains(&place))
        };
        // SAFETY: the layout is not empty, and writes and reads lie in the block.
        unsafe {
            let block = blocks.alloc(layout);
            block.add(4 << 20).write(7);
            if !is_asked(block) {
                blocks.dealloc(block, layout);
                // Not by `eprintln!`, which the test harness keeps to itself.
                let line = b"SKIPPED: this kernel has no huge pages\n";
                return std::io::stderr().write_all(line).expect("standard error is open");
            }
            forget_huge_pages().expect("a list of mappings");
            assert!(!is_asked(block) && block.add(4 << 20).read() == 7);
            let other = blocks.alloc(layout);
            assert!(is_asked(other), "the next large block asks anew");
            blocks.dealloc(other, layout);
            blocks.dealloc(block, layout);
        }
    }

    #[test]
    fn blocks_begin_at_a_line_and_keep_their_content_however_they_grow_and_shrink() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = TensorBlocks::new(Shifting(0.into()));
        let sizes = [100, 5000, 70_000, 4 << 20, 9 << 20, 80_000, 4096, 4095, 60, 12_000, 12_001];
        for align in [1, 8, 64] {
            let mut layout = Layout::from_size_align(50, align).expect("a layout");
            // SAFETY: layouts are not empty, and every write and read lies in the block.
            unsafe {
                let mut block = blocks.alloc(layout);
                for (i, size) in sizes.into_iter().enumerate() {
                    let kept = layout.size().min(size);
                    for at in 0..layout.size() {
                        block.add(at).write((at * 7 + i) as u8);
                    }
                    block = blocks.realloc(block, layout, size);
                    layout = Layout::from_size_align(size, align).expect("a layout");
                    assert!(size < SMALLEST_ALIGNED_BYTES || block.addr().is_multiple_of(LINE));
                    assert!((0..kept).all(|at| block.add(at).read() == (at * 7 + i) as u8));
                }
                blocks.dealloc(block, layout);
                let zeroed = Layout::from_size_align(8192, align).expect("a layout");
                let block = blocks.alloc_zeroed(zeroed);
                assert!((0..8192).all(|at| block.add(at).read() == 0));
                blocks.dealloc(block, zeroed);
            }
        }
    }
}
