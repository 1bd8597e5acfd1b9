//! Plans for cards that are not there.
//!
//! `packaging/cuda/test --cudnn` runs this with NVIDIA's library; `packaging/cuda/test` with the stand-in's,
//! which takes graphs by the same rules.

use candle_core::Result;

use super::attribute::DEVICE_AS_JSON;
use super::descriptor::{Descriptor, Kind, Letter};
use super::graph::{Pass, Plan, Shape, Target};
use super::library::functions;
use crate::gpu_sizes::library_backward;

/// What tells a card from another one: its compute capability, multiprocessors, and the shared memory that
/// a block may have in bytes.
const CARDS: [(u32, u32, u32); 6] = [
    (80, 108, 166_912),
    (86, 82, 101_376),
    (89, 128, 101_376),
    (90, 132, 232_448),
    (100, 148, 232_448),
    (120, 170, 101_376),
];

/// A card as the library writes one down.
fn described((capability, multiprocessors, shared): (u32, u32, u32)) -> Result<Descriptor> {
    let threads = if matches!(capability, 80 | 90 | 100) { 2048 } else { 1536 };
    let text = format!(
        r#"{{"cudaDeviceId": 0, "deviceName": "described", "deviceVer": {version}, "driverVer": 13000,
        "isTccDriver": 0, "l2CacheSize": 52428800, "maxCtasPerSM": 32, "maxRegistersPerSM": 65536,
        "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": {shared},
        "maxThreadsPerBlock": 1024, "maxThreadsPerSM": {threads}, "memClockRateKHz": 2619000,
        "memoryBusWidth": 5120, "multiProcessorCount": {multiprocessors}, "pciDeviceId": 0,
        "regsPerBlock": 65536, "reservedSharedMemoryPerBlock": 1024, "smClockRateKHz": 1755000,
        "supportCoopLaunch": 1, "totalGlobalMem": 85899345920, "warpSize": 32, "smCountOrigin": 0,
        "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64]}}"#,
        version = 10 * capability,
    );
    let letters: Vec<Letter> = text.bytes().map(Letter).collect();
    Descriptor::new(Kind::Device)?.with(DEVICE_AS_JSON, &letters)?.finalized("a device")
}

/// Qwen3's heads, Qwen2's and Gemma's, with the rules that these models have.
fn shapes(pass: Pass) -> Vec<Shape> {
    let qwen3 = Shape {
        pass,
        heads: 16,
        kv_heads: 8,
        dim: 128,
        has_window: false,
        has_softcap: false,
        documents: 2,
        longest: 4096,
        tokens: 8192,
    };
    let gemma = Shape { heads: 8, kv_heads: 4, dim: 256, has_window: true, ..qwen3 };
    vec![
        qwen3,
        Shape { documents: 16, longest: 512, ..qwen3 },
        Shape { heads: 14, kv_heads: 2, dim: 64, ..qwen3 },
        Shape { heads: 16, kv_heads: 16, dim: 64, ..qwen3 },
        gemma,
        Shape { has_softcap: true, ..gemma },
        Shape { has_softcap: true, has_window: false, ..gemma },
    ]
}

/// Whether there is a library; said so where there is none.
fn is_there() -> bool {
    let found = functions();
    if let Err(reason) = &found {
        use std::io::Write;
        let skipped = format!("SKIPPED: no cuDNN ({reason})\n");
        std::io::stderr().write_all(skipped.as_bytes()).expect("stderr");
    }
    found.is_ok()
}

#[test]
fn every_card_has_a_forward_pass() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    for card in CARDS {
        let target = Target::Described(described(card)?);
        for shape in shapes(Pass::Forward) {
            let plan = Plan::new(&shape, &target);
            let bytes =
                plan.map_err(|error| format!("{card:?} {shape:?}: {error}")).expect("a plan");
            assert!(bytes.workspace <= 1 << 20, "{card:?} {shape:?}: {} bytes", bytes.workspace);
        }
    }
    Ok(())
}

#[test]
fn ordered_sums_are_for_hopper_and_take_what_the_plan_says() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    for card in CARDS {
        let target = Target::Described(described(card)?);
        for shape in shapes(Pass::Backward) {
            let plan = Plan::new(&shape, &target);
            if card.0 != 90 {
                assert!(plan.is_err(), "{card:?} {shape:?}");
                continue;
            }
            let taken = plan.expect("a plan").workspace;
            let planned = library_backward([shape.heads, shape.kv_heads, shape.dim], shape.tokens);
            assert!(taken <= planned && planned - taken <= 256 << 10, "{taken} of {planned}");
        }
    }
    Ok(())
}
