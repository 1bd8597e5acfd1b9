//! The order of rows: that of transformers' default sampler, so that the same seed trains on the
//! same batches.

use crate::mersenne_twister::MersenneTwister;

/// `torch.randperm(n)` under the CPU generator seeded with `seed + epoch`.
pub fn row_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut generator = MersenneTwister::new(seed.wrapping_add(epoch));
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let left = (n - i) as u64;
        // PyTorch draws 64 bits from where 32 would favour some rows.
        let draw = if n as u64 >= u64::from(u32::MAX) / 20 {
            generator.next_u64()
        } else {
            u64::from(generator.next_u32())
        };
        order.swap(i, i + (draw % left) as usize);
    }
    order
}

/// Splits rows into those to train on and those held out: `share` of them, rounded, at least one
/// where the share is above 0 and there are two. Both lists are in the order of the data.
pub fn split_held_out(n: usize, share: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let wanted = (n as f64 * share.clamp(0.0, 1.0)).round() as usize;
    let count = if share > 0.0 && n > 1 { wanted.clamp(1, n - 1) } else { 0 };
    let mut held_out = row_order(n, seed, 0);
    held_out.truncate(count);
    held_out.sort_unstable();
    let train = (0..n).filter(|row| held_out.binary_search(row).is_err()).collect();
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_disjoint_and_complete() {
        for (n, share, expected) in
            [(10, 0.0, 0), (10, 0.25, 3), (10, 0.001, 1), (1, 0.5, 0), (10, 0.99, 9), (0, 0.5, 0)]
        {
            let (train, held_out) = split_held_out(n, share, 42);
            assert_eq!(held_out.len(), expected, "{n} {share}");
            let mut all = [train, held_out].concat();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
        }
    }
}
