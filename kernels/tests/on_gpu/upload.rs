//! Numbers from the host.

use chandler_kernels::device;

use crate::support::gpu;

/// More than the ring of pinned memory holds, in pieces of all sizes, none of which is looked at before
/// all were handed over.
#[test]
fn what_was_handed_over_arrives_however_late() {
    let Some((_alone, gpu)) = gpu() else { return };
    let sizes = [1, 3, 70_001, 400_000, 524_288, 1_000_003, 2_500_000];
    let values = |round: u32, size: u32| -> Vec<u32> {
        (0..size).map(|i| i.wrapping_mul(2_654_435_761) ^ (round << 20)).collect()
    };
    let there: Vec<_> = (0..3)
        .flat_map(|round| sizes.map(|size| (round, size)))
        .map(|(round, size)| {
            let tensor = device::upload(values(round, size), size as usize, &gpu).unwrap();
            (round, size, tensor)
        })
        .collect();
    for (round, size, tensor) in there {
        assert!(tensor.to_vec1::<u32>().unwrap() == values(round, size), "{size} of {round}");
    }
    assert!(device::upload(vec![1u32; 3], 4, &gpu).is_err());
}
