//! `chandler run`.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chandler_vram::Ledger;
use clap::Args;
use jiff::Timestamp;

use super::App;
use crate::config::Config;
use crate::control::{ControlServer, Handler};
use crate::daemon::{
    Answers, Controls, DaemonError, Guest, JobLoop, Lookout, SteadyClock, Tally, Until, Voice,
};
use crate::engine;
use crate::exit::Exit;
use crate::failure::{Failure, in_one_line};
use crate::http::HttpServer;
use crate::logging::{self, Progress, Terminal};
use crate::notify::{Notifier, Urgent};
use crate::output;
use crate::serve::{self, Service};
use crate::service::NotifySocket;
use crate::signals;
use crate::state_dir::StateDir;
use crate::store::{Store, StoreError};
use crate::supervisor;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// End when nothing waits in the inbox any more
    #[arg(long)]
    once: bool,
    /// Started by the supervisor with this process number, which listens on standard output
    #[arg(long, hide = true, value_name = "PID")]
    supervised_by: Option<i32>,
    /// How the daemon before this one ended
    #[arg(long, hide = true, value_name = "WORDS")]
    after: Option<String>,
}

pub(super) fn run(app: &App, args: &RunArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let config = app.config(Vec::new())?.config;
    let until = if args.once { Until::Empty } else { Until::Stopped };
    if until == Until::Stopped && config.daemon.restart && args.supervised_by.is_none() {
        return supervised(app, &config);
    }
    let controls = Controls::default();
    if let Some(supervisor) = args.supervised_by {
        end_with(supervisor)?;
        controls.speak(Voice::Supervisor);
    } else if let Some(socket) = service_manager(&app.terminal) {
        controls.speak(Voice::Manager(socket));
    }
    let tally = work(&state, &config, &app.terminal, &controls, until, args.after.as_deref())?;
    // The standard output of a supervised daemon carries its signs of life.
    if app.json && args.supervised_by.is_none() {
        output::print_json(&tally)?;
    }
    Ok(if args.once && tally.failed > 0 { Exit::BadData } else { Exit::Ok })
}

/// The socket of the service manager, where one listens. Who cannot be told is no reason not to work.
fn service_manager(terminal: &Terminal) -> Option<NotifySocket> {
    NotifySocket::from_environment().unwrap_or_else(|error| {
        terminal.print(&format!("warning: the service manager is told nothing: {error}\n"));
        None
    })
}

/// Starts the daemon as a child, as often as it takes.
fn supervised(app: &App, config: &Config) -> Result<Exit, Failure> {
    let failed = |source: std::io::Error| {
        let error = anyhow::Error::new(source).context("the daemon cannot be started");
        let hint = "with daemon.restart = false it runs without a process that watches it";
        Failure::new(Exit::Error, error, Some(hint.to_owned()))
    };
    let binary = std::env::current_exe().map_err(failed)?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let mut command = |crash: Option<&str>| {
        let mut command = Command::new(&binary);
        let own = std::process::id().to_string();
        command.args(&arguments).args(["--supervised-by", &own]).process_group(0);
        command.args(crash.iter().flat_map(|words| ["--after", words]));
        command
    };
    let mut tell = |words: &str| app.terminal.print(&format!("warning: {words}\n"));
    let hang = Duration::try_from_secs_f64(config.daemon.hang_seconds).ok();
    let hang = hang.filter(|hang| !hang.is_zero());
    let socket = service_manager(&app.terminal);
    // What the manager does not hear is said again with the next sign of life.
    let manager = |words: &str| drop(socket.as_ref().map(|socket| socket.send(words)));
    let code = supervisor::supervise(&mut command, &mut tell, &manager, hang).map_err(failed)?;
    Ok(Exit::from_code(code))
}

/// A daemon whose supervisor was killed is asked to end, so that two of them never work.
fn end_with(supervisor: i32) -> Result<(), Failure> {
    follow(supervisor).map_err(|error| {
        let error = anyhow::Error::new(error).context("cannot follow the supervisor");
        Failure::new(Exit::Error, error, None)
    })?;
    // It may have been killed before we asked to be told.
    if is_orphan_of(supervisor) {
        return Err(Failure::new(Exit::Error, anyhow::anyhow!("the supervisor is gone"), None));
    }
    Ok(())
}

fn is_orphan_of(supervisor: i32) -> bool {
    rustix::process::getppid() != rustix::process::Pid::from_raw(supervisor)
}

/// Asks for SIGTERM when the supervisor is gone.
#[cfg(target_os = "linux")]
fn follow(_: i32) -> std::io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::TERM))?)
}

/// Sends SIGTERM to this process when the supervisor is gone: no system but Linux does it by itself.
#[cfg(not(target_os = "linux"))]
fn follow(supervisor: i32) -> std::io::Result<()> {
    use rustix::process::{Signal, getpid, kill_process};
    let watch = move || {
        while !is_orphan_of(supervisor) {
            std::thread::sleep(Duration::from_secs(1));
        }
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            tracing::warn!(%error, "the supervisor is gone, and this process cannot end itself");
        }
    };
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(watch).map(drop)
}

/// The daemon: holds the lock, answers commands, and works until told or until nothing waits.
pub(super) fn work(
    state: &StateDir,
    config: &Config,
    terminal: &Terminal,
    controls: &Controls,
    until: Until,
    after: Option<&str>,
) -> Result<Tally, Failure> {
    state.create_folders()?;
    state.check_writable()?;
    let lock = crate::lock::hold(state)?;
    engine::hold_device(config)?;
    logging::init(&config.log, terminal, Some(&state.logs()))?;
    engine::tell_device(config);
    signals::stop_on_signals(controls)?;
    if let Some(error) = lock.naming_error() {
        tracing::warn!(%error, "the lock is held, but {} does not say so", lock.path().display());
    }
    let mut store = Store::open(&state.database())?;
    let notifier = notifier(state, config);
    if let Some(words) = after {
        tracing::warn!("{words}");
        note(&store, "restarted", words);
    }
    let ledger = Ledger::new();
    let answers = Arc::new(Answers::new(state, controls, &ledger));
    let asked = Arc::clone(&answers);
    let handler: Arc<Handler> = Arc::new(move |request| asked.answer(request));
    let _server = ControlServer::start(state, Arc::clone(&handler))?;
    let service = service(state, config, &ledger);
    let page =
        config.http.enabled.then(|| HttpServer::start(state, config, handler, service.as_ref()));
    // Whoever trains can do without a page.
    let page = page.and_then(|started| {
        started
            .inspect_err(|error| {
                let hint = error.hint().unwrap_or_default();
                tracing::warn!("no page: {} ({hint})", in_one_line(error));
            })
            .ok()
    });
    if let Some(page) = &page {
        answers.tell_http(&page.url());
    }
    let progress = Progress::new(terminal);
    let mut runner = engine::runner(state, config, &ledger, &store)?;
    tracing::info!("chandler {} on {}", env!("CARGO_PKG_VERSION"), state.root().display());
    if let Some(page) = &page {
        tracing::info!(
            "page at {}: `chandler dashboard` prints the address with its token",
            page.url()
        );
    }
    let urgent = notifier.as_ref().map(Notifier::urgent);
    let lookout = lookout(state, config, controls, urgent)?;
    let clock = SteadyClock::after(newest_moment(&store)?);
    note(&store, "daemon_started", &format!("chandler {} works", env!("CARGO_PKG_VERSION")));
    controls.tell_manager("READY=1");
    let worked = JobLoop {
        state,
        config,
        lock: &lock,
        store: &mut store,
        controls,
        progress: &progress,
        runner: &mut *runner,
        clock,
        guest: service.as_deref().map(|service| service as &dyn Guest),
    }
    .work(until);
    // Answers that go on are brought to their end while there is still somebody to tell them.
    if let Some(service) = &service {
        service.end();
    }
    controls.tell_manager("STOPPING=1");
    drop(lookout);
    if !matches!(worked, Err(DaemonError::Lost(_))) {
        let words =
            worked.as_ref().map_or_else(|error| in_one_line(error), |tally| in_words(*tally));
        note(&store, "daemon_stopped", &format!("ended: {words}"));
    }
    // It says what is left to say.
    drop(notifier);
    let tally = worked?;
    tracing::info!("ended: {}", in_words(tally));
    Ok(tally)
}

/// Whoever trains can do without anybody who is told of it.
fn notifier(state: &StateDir, config: &Config) -> Option<Notifier> {
    Notifier::start(state, &config.notify).unwrap_or_else(|error| {
        let hint = error.hint().unwrap_or_default();
        tracing::warn!("nobody is notified: {} ({hint})", in_one_line(&error));
        None
    })
}

fn lookout(
    state: &StateDir,
    config: &Config,
    controls: &Controls,
    urgent: Option<Urgent>,
) -> Result<Lookout, Failure> {
    Lookout::start(state, &config.alerts, controls, urgent).map_err(|error| {
        let error = anyhow::Error::new(error).context("cannot start the thread that looks out");
        Failure::new(Exit::Error, error, None)
    })
}

/// When the last thing happened that the database knows of.
fn newest_moment(store: &Store) -> Result<Option<Timestamp>, StoreError> {
    Ok(store.recent_events(1)?.first().and_then(|event| event.at.parse().ok()))
}

/// Records that the daemon began or ended; a full disk is no reason to end.
fn note(store: &Store, kind: &str, message: &str) {
    if let Err(error) = store.record_event(kind, None, None, message, None) {
        tracing::warn!("not recorded: {}", in_one_line(&error));
    }
}

/// Answers requests to the newest model between jobs, where the configuration wants it. Whoever
/// trains can do without.
fn service(state: &StateDir, config: &Config, ledger: &Ledger) -> Option<Arc<Service>> {
    if !(config.http.enabled && config.serve.enabled) {
        return None;
    }
    let database = state.database();
    let tell = Arc::new(move |words: &str| {
        let told = Store::open(&database)
            .and_then(|store| store.record_event("memory", None, None, words, None));
        if let Err(error) = told {
            tracing::warn!("the event is not recorded: {error}");
        }
    });
    let source = serve::newest_or_base(state, config);
    let service = Service::on_demand(config, ledger, source, tell);
    service
        .inspect_err(|error| tracing::warn!("no requests are answered: {error}"))
        .ok()
        .map(Arc::new)
}

fn in_words(tally: Tally) -> String {
    format!("{} done, {} failed, {} skipped", tally.done, tally.failed, tally.skipped)
}
