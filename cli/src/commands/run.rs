//! `chandler run`.

use std::sync::Arc;

use chandler_vram::Ledger;
use clap::Args;

use super::App;
use crate::config::Config;
use crate::control::ControlServer;
use crate::daemon::{Answers, Controls, JobLoop, Tally, Until};
use crate::engine;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::{self, Progress, Terminal};
use crate::signals;
use crate::state_dir::StateDir;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// End when nothing waits in the inbox any more
    #[arg(long)]
    once: bool,
}

pub(super) fn run(app: &App, args: &RunArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let config = app.config(Vec::new())?.config;
    let until = if args.once { Until::Empty } else { Until::Stopped };
    let tally = work(&state, &config, &app.terminal, until)?;
    Ok(if args.once && tally.failed > 0 { Exit::BadData } else { Exit::Ok })
}

/// The daemon: holds the lock, answers commands, and works until told or until nothing waits.
pub(super) fn work(
    state: &StateDir,
    config: &Config,
    terminal: &Terminal,
    until: Until,
) -> Result<Tally, Failure> {
    state.create_folders()?;
    state.check_writable()?;
    let _lock = crate::lock::hold(state)?;
    logging::init(&config.log, terminal, Some(&state.logs()))?;
    let controls = Controls::default();
    signals::stop_on_signals(&controls)?;
    let mut store = Store::open(&state.database())?;
    let ledger = Ledger::new();
    let answers = Answers::new(state, &controls, &ledger);
    let _server = ControlServer::start(state, Arc::new(move |request| answers.answer(request)))?;
    let progress = Progress::new(terminal);
    let mut runner = engine::runner(state, config, &ledger);
    tracing::info!("chandler {} on {}", env!("CARGO_PKG_VERSION"), state.root().display());
    let tally = JobLoop {
        state,
        config,
        store: &mut store,
        controls: &controls,
        progress: &progress,
        runner: &mut *runner,
    }
    .work(until)?;
    tracing::info!("ended: {}", in_words(tally));
    Ok(tally)
}

fn in_words(tally: Tally) -> String {
    format!("{} done, {} failed, {} skipped", tally.done, tally.failed, tally.skipped)
}
