//! `hold FILE`: takes the lock, says so, and holds it until its input ends.

use std::io::{Read, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else { return ExitCode::from(2) };
    match chandler_daemon_lock::lock_file(path.as_ref()) {
        Ok(_lock) => {
            let mut out = std::io::stdout();
            let told = writeln!(out, "held").and_then(|()| out.flush());
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
