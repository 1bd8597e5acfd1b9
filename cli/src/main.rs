//! The chandler binary: fine-tuning as a daemon.

use std::alloc::System;
use std::process::ExitCode;

use chandler_cli::commands::{self, Cli};
use chandler_cli::heap;
use chandler_cli::logging::Terminal;
use chandler_vram::{CountingAllocator, TensorBlocks};

#[global_allocator]
static ALLOCATOR: CountingAllocator<TensorBlocks<System>> =
    CountingAllocator::new(TensorBlocks::new(System));

fn main() -> ExitCode {
    let terminal = Terminal::stderr();
    let cli = Cli::from_arguments(&terminal);
    if !cli.is_worker() {
        heap::keep_pages();
    }
    let place = terminal.clone();
    // As any other line, so that nothing in it acts on the terminal.
    std::panic::set_hook(Box::new(move |panic| place.print(&format!("{panic}\n"))));
    let as_json = cli.is_json();
    match commands::dispatch(cli, &terminal) {
        Ok(exit) => exit.into(),
        Err(failure) if as_json => {
            terminal.print_json(&failure.render_json());
            failure.exit.into()
        }
        Err(failure) => {
            terminal.print(&failure.render(terminal.has_colour()));
            failure.exit.into()
        }
    }
}
