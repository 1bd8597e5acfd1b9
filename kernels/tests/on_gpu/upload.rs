//! Numbers from the host and back.

use candle_core::DType;
use chandler_kernels::{device, logits};

use crate::support::{gpu, noise};

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

#[test]
fn logits_come_back_in_rows() {
    let Some((_alone, gpu)) = gpu() else { return };
    for (rows, vocab) in [(3, 1000), (1, 7), (40, 5000)] {
        for dtype in [DType::F32, DType::BF16] {
            let here = noise((rows, vocab), rows as u64, dtype);
            let expected: Vec<Vec<f32>> = here.to_dtype(DType::F32).unwrap().to_vec2().unwrap();
            let there = here.to_device(&gpu).unwrap();
            let found = logits::with_rows(&there, |rows| {
                let rows = rows.iter().map(|row| row.to_vec());
                Ok::<_, candle_core::Error>(rows.collect::<Vec<_>>())
            });
            assert!(found.unwrap() == expected, "{rows} {vocab} {dtype:?}");
        }
    }
}
