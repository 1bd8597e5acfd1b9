//! The counting allocator as the allocator of a process: one test, since the books are the
//! process's.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::System;

use chandler_vram::{CountingAllocator, counting};

#[global_allocator]
static ALLOCATOR: CountingAllocator<System> = CountingAllocator::new(System);

const MIB: usize = 1 << 20;

fn live() -> usize {
    counting::live_bytes().unwrap() as usize
}

#[test]
fn the_books_follow_every_kind_of_call() {
    let warm = vec![1u8; MIB];
    let base = live();
    let zeroed = vec![0u8; 3 * MIB];
    assert_eq!(live(), base + 3 * MIB);
    let mut grown: Vec<u8> = Vec::with_capacity(MIB);
    grown.reserve_exact(2 * MIB);
    assert_eq!(live(), base + 5 * MIB);
    // From a counted size to one below, and back.
    grown.shrink_to(100);
    assert_eq!(live(), base + 3 * MIB);
    grown.reserve_exact(MIB);
    assert_eq!(live(), base + 4 * MIB);
    // Freed by another thread than the one that took it.
    std::thread::scope(|scope| scope.spawn(move || drop(zeroed)).join()).unwrap();
    drop(grown);
    assert_eq!(live(), base);

    let high = counting::high_water_bytes().unwrap() as usize;
    assert!(high >= base + 5 * MIB, "{high}");
    counting::reset_high_water();
    assert_eq!(counting::high_water_bytes().unwrap() as usize, base);
    drop(warm);
    assert_eq!(counting::high_water_bytes().unwrap() as usize, base);
    drop(vec![1u8; 7 * MIB]);
    assert_eq!(counting::high_water_bytes().unwrap() as usize, base + 6 * MIB);
}
