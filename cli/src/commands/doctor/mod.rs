//! `chandler doctor`: is everything there that a run needs, and is nothing in its way?
//!
//! A file for each theme. Each check is a function from what was read to a verdict, so that tests
//! can feed it readings of machines that are not there.

mod check;
mod clock;
mod configuration;
mod disk;
mod file_system;
mod gpu;
mod machine;
mod memory;
mod network;
mod permissions;
mod processes;
mod state;

use self::check::{Check, Verdict, render};
use super::App;
use crate::exit::Exit;
use crate::failure::Failure;

pub(super) fn doctor(app: &App) -> Result<Exit, Failure> {
    let (config_check, config) = configuration::check(app);
    let mut checks = vec![config_check];
    let mut daemon = vec![];
    match app.state() {
        Err(failure) => checks.push(Check::of_failure("state directory", &failure)),
        Ok(state) => {
            checks.push(state::folder(&state));
            checks.extend(permissions::check(&permissions::read(&state)));
            checks.extend(disk::checks(&state, &config));
            checks.push(file_system::check(file_system::read(state.root())));
            checks.push(state::database(&state));
            checks.push(state::lock(&state));
            let processes = processes::read();
            daemon = processes::pids_of_daemon(&processes, state.root());
            checks.extend(processes::check(&processes, state.root()));
            checks.extend(clock::checks(&state));
            checks.push(network::check(&config, &network::read(&state, &config)));
        }
    }
    checks.extend(memory::checks(app, &config));
    checks.extend(machine::checks());
    checks.extend(gpu::checks(&daemon));
    app.print(&render(&checks), &checks)?;
    let healthy = checks.iter().all(|check| check.verdict != Verdict::Problem);
    Ok(if healthy { Exit::Ok } else { Exit::Error })
}
