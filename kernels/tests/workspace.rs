//! Workspace, counted in a process of its own: the pool of buffers is one for all.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::linear_cross_entropy::{forward_backward, workspace_bytes};
use chandler_kernels::scratch;

/// What the tiles of a product take, a thread.
const TILE_BYTES: usize = 192 * 256 * 4;

#[test]
fn the_loss_takes_the_workspace_that_it_says() -> Result<()> {
    // Each buffer ends with a cache line.
    let tiles = rayon::current_num_threads() * TILE_BYTES + 8 * 64;
    for dtype in [DType::F32, DType::BF16] {
        for (tokens, vocab, width) in [
            (7, 50, 6),
            (40, 3000, 64),
            (300, 20_000, 96),
            (48, 262_144, 32),
            (64, 9000, 1500),
            (3000, 90, 40),
            (90, 70_000, 300),
            (33, 3001, 151),
        ] {
            let hidden = Tensor::ones((tokens, width), dtype, &Device::Cpu)?;
            let head = Tensor::ones((vocab, width), dtype, &Device::Cpu)?;
            let d_head = Tensor::zeros((vocab, width), DType::F32, &Device::Cpu)?;
            let targets = vec![1; tokens];
            for d_head in [Some(&d_head), None] {
                scratch::release();
                assert_eq!(scratch::held_bytes(), 0);
                forward_backward(&hidden, &head, &targets, None, 1.0, d_head)?;
                let trains = d_head.is_some();
                let said = workspace_bytes(tokens, vocab, width, dtype, trains);
                let held = scratch::held_bytes();
                let case =
                    format!("{dtype:?} {tokens} x {vocab} x {width} {trains}: {held} of {said}");
                assert!(held <= said + tiles, "{case}");
                assert!(2 * (held + tiles) >= said, "{case}");
                assert!(said <= 64 << 20, "{case}");
            }
        }
    }
    Ok(())
}
