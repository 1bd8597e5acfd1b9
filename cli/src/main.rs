//! The chandler binary: fine-tuning as a daemon.

use std::alloc::System;
use std::process::ExitCode;

use chandler_vram::{CountingAllocator, TensorBlocks};

#[global_allocator]
static ALLOCATOR: CountingAllocator<TensorBlocks<System>> =
    CountingAllocator::new(TensorBlocks::new(System));

fn main() -> ExitCode {
    chandler_cli::commands::run_program()
}
