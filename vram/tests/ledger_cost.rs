//! What a change in the ledger costs, printed; a step makes four for each block and micro-batch.

use std::time::{Duration, Instant};

use chandler_vram::{Category, Ledger};

const CHANGES: u32 = 200_000;
/// Far above what it takes anywhere: a change that waits or allocates would pass it.
const MOST: Duration = Duration::from_micros(5);

#[test]
fn a_change_costs_next_to_nothing() {
    let ledger = Ledger::new();
    let cost_of = |category| {
        let mut entry = ledger.enter(category, 0);
        let begun = Instant::now();
        for round in 0..CHANGES {
            entry.set(u64::from(round % 2) << 20);
        }
        begun.elapsed() / CHANGES
    };
    let alone = cost_of(Category::Activations);
    let beside = std::thread::scope(|scope| {
        let other = scope.spawn(|| cost_of(Category::KvCache));
        cost_of(Category::Activations).max(other.join().unwrap())
    });
    println!("a change: {alone:?} alone, {beside:?} beside another thread's");
    assert!(alone < MOST && beside < MOST, "{alone:?}, {beside:?}");
}
