//! The commands of the binary, one file each.

mod add;
mod bench;
mod chat;
mod completions;
mod config;
mod dashboard;
mod data;
mod doctor;
mod eval;
mod export;
mod generate;
mod init;
mod jobs;
mod logs;
mod man;
mod metrics_file;
mod notify;
mod output_folder;
mod plan;
mod push;
mod quickstart;
mod reference;
mod rollback;
mod run;
mod serve;
mod service;
mod status;
pub(crate) mod steer;
mod talk;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::config::{Config, ConfigSources, FlagValue, ResolvedConfig};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::heap;
use crate::logging::Terminal;
use crate::output;
use crate::state_dir::{StateDir, StateDirError};
use crate::worker;

/// Fine-tunes language models as a daemon: drop a file into the inbox, and the model learns from it.
#[derive(Debug, Parser)]
#[command(name = "chandler", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// The state directory [default: the current folder if it is one, else ./chandler-state]
    #[arg(long, global = true, env = "CHANDLER_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Set a configuration key; may be given several times
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON; an error is JSON too, on standard error
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a state directory with a commented chandler.toml
    Init(init::InitArgs),
    /// Copy a file into the inbox
    Add(add::AddArgs),
    /// Learn from the files in the inbox, one after the other
    Run(run::RunArgs),
    /// Say what the daemon is doing
    Status(status::StatusArgs),
    /// Print the address of the daemon's page in the browser, with its token
    Dashboard(dashboard::DashboardArgs),
    /// Print what was logged, or what is being logged
    Logs(logs::LogsArgs),
    /// List the jobs
    Jobs(jobs::JobsArgs),
    /// Take no more steps until told to resume
    Pause,
    /// Go on after a pause
    Resume,
    /// Pass over a job
    Skip(steer::SkipArgs),
    /// Finish the step, leave a checkpoint and end the daemon
    Stop,
    /// Queue a failed, skipped or done job again
    Retry(steer::RetryArgs),
    /// Move a queued job before or behind others
    Priority(steer::PriorityArgs),
    /// Evaluate the model after the step that is going on
    EvalNow,
    /// Put a snapshot in place of the newest model, or list the snapshots
    Rollback(rollback::RollbackArgs),
    /// Train once, without a daemon
    Train(train::TrainArgs),
    /// Score a model on a file: loss, perplexity, token accuracy, exact match
    Eval(eval::EvalArgs),
    /// Answer a conversation
    Generate(generate::GenerateArgs),
    /// Talk with a model
    Chat(chat::ChatArgs),
    /// Answer requests in the form of OpenAI's API with a model
    Serve(serve::ServeArgs),
    /// Say how much memory a run will use
    Plan(plan::PlanArgs),
    /// Write models, metrics, samples and events in the formats of other programs
    Export(export::ExportArgs),
    /// Upload a model, with a card, to the Hugging Face hub
    Push(push::PushArgs),
    /// Look at training files
    #[command(subcommand)]
    Data(data::DataCommand),
    /// See all of it work on a small model: a minute, no network
    Quickstart(quickstart::QuickstartArgs),
    /// Print the configuration, or what can be configured
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Measure speed and memory with fresh weights: needs no model and no data
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Check the state directory and the machine
    Doctor,
    /// Print what a shell needs to complete commands
    Completions(completions::CompletionsArgs),
    /// Print a manual page, or write one for each command
    Man(man::ManArgs),
    /// Webhooks and the desktop: say whether what is sent arrives
    #[command(subcommand)]
    Notify(notify::NotifyCommand),
    /// Have the system run the daemon: systemd, or launchd
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Read what others wrote; chandler starts it itself
    #[command(name = worker::SUBCOMMAND, hide = true)]
    ReadForeignText,
}

impl Cli {
    /// Reads the arguments; what is wrong with them, or the help that they ask for, ends the
    /// process.
    pub fn from_arguments(terminal: &Terminal) -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let wants_json = std::env::args_os().any(|argument| argument == "--json");
            if !error.use_stderr() || !wants_json {
                error.exit();
            }
            terminal.print_json(&wrong_arguments(&error).render_json());
            std::process::exit(Exit::Usage.code().into())
        })
    }

    /// Whether the user asked for JSON.
    pub fn is_json(&self) -> bool {
        self.global.json
    }

    /// Whether this process reads what others wrote, and nothing else.
    pub fn is_worker(&self) -> bool {
        matches!(self.command, Command::ReadForeignText)
    }
}

/// What clap says, without its colours.
fn wrong_arguments(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let (what, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let what = what.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    let hint = rest.split("\n\n").map(str::trim).find(|part| !part.is_empty());
    let (what, hint) = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            ("no command was named".to_owned(), None)
        }
        _ => (what, hint.map(|hint| hint.split_whitespace().collect::<Vec<_>>().join(" "))),
    };
    let hint = hint.or_else(|| Some("`chandler help` lists the commands".to_owned()));
    Failure::new(Exit::Usage, anyhow::anyhow!(what), hint)
}

/// The binary's commands, without those that only it starts itself and without what only it says
/// to itself.
fn public_command() -> clap::Command {
    without_hidden(Cli::command())
}

fn without_hidden(command: clap::Command) -> clap::Command {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let mut shown = clap::Command::new(command.get_name().to_owned())
        .args(arguments.cloned())
        .subcommand_required(command.is_subcommand_required_set())
        .args_conflicts_with_subcommands(command.is_args_conflicts_with_subcommands_set())
        .subcommand_negates_reqs(command.is_subcommand_negates_reqs_set());
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    let subcommands = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.subcommands(subcommands.cloned().map(without_hidden))
}

/// The whole program, with the arguments of this process: what its `main` calls.
pub fn run_program() -> ExitCode {
    let terminal = Terminal::stderr();
    let cli = Cli::from_arguments(&terminal);
    if !cli.is_worker() {
        heap::keep_pages();
    }
    let place = terminal.clone();
    // As any other line, so that nothing in it acts on the terminal.
    std::panic::set_hook(Box::new(move |panic| place.print(&format!("{panic}\n"))));
    let as_json = cli.is_json();
    match dispatch(cli, &terminal) {
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

/// Does what the arguments ask.
fn dispatch(cli: Cli, terminal: &Terminal) -> Result<Exit, Failure> {
    let app = App::new(cli.global, terminal)?;
    match cli.command {
        Command::Init(args) => init::init(&app, &args),
        Command::Add(args) => add::add(&app, &args),
        Command::Run(args) => run::run(&app, &args),
        Command::Status(args) => status::status(&app, &args),
        Command::Dashboard(args) => dashboard::dashboard(&app, &args),
        Command::Logs(args) => logs::logs(&app, &args),
        Command::Jobs(args) => jobs::jobs(&app, &args),
        Command::Pause => steer::pause(&app, true),
        Command::Resume => steer::pause(&app, false),
        Command::Skip(args) => steer::skip(&app, &args),
        Command::Stop => steer::stop(&app),
        Command::Retry(args) => steer::retry(&app, &args),
        Command::Priority(args) => steer::priority(&app, &args),
        Command::EvalNow => steer::eval_now(&app),
        Command::Rollback(args) => rollback::rollback(&app, &args),
        Command::Train(args) => train::train(&app, &args),
        Command::Eval(args) => eval::eval(&app, &args),
        Command::Generate(args) => generate::generate(&app, &args),
        Command::Chat(args) => chat::chat(&app, &args),
        Command::Serve(args) => serve::serve(&app, &args),
        Command::Plan(args) => plan::plan(&app, &args),
        Command::Export(args) => export::export(&app, &args),
        Command::Push(args) => push::push(&app, &args),
        Command::Data(command) => data::data(&app, &command),
        Command::Quickstart(args) => quickstart::quickstart(&app, &args),
        Command::Config(command) => config::config(&app, &command),
        Command::Bench(command) => bench::bench(&command),
        Command::Doctor => doctor::doctor(&app),
        Command::Completions(args) => completions::completions(&app, &args),
        Command::Man(args) => man::man(&app, &args),
        Command::Notify(command) => notify::notify(&app, &command),
        Command::Service(command) => service::service(&app, &command),
        Command::ReadForeignText => Ok(worker::serve()),
    }
}

/// What commands work with.
pub(crate) struct App {
    /// The state directory that is meant, whether or not it exists.
    state: StateDir,
    /// Whether the user named it.
    dir_was_given: bool,
    set: Vec<String>,
    json: bool,
    terminal: Terminal,
}

impl App {
    fn new(global: Global, terminal: &Terminal) -> Result<Self, Failure> {
        let current = std::env::current_dir().map_err(|error| {
            let error = anyhow::Error::new(error).context("the current folder is gone");
            Failure::new(Exit::Error, error, Some("change into a folder that exists".into()))
        })?;
        let state = StateDir::choose(global.dir.as_deref(), &current);
        let dir_was_given = global.dir.is_some();
        let Global { set, json, .. } = global;
        Ok(Self { state, dir_was_given, set, json, terminal: terminal.clone() })
    }

    /// Prints what came of a command: text for people or, where that is wanted, JSON.
    fn print(&self, text: &str, value: &impl Serialize) -> Result<(), Failure> {
        if self.json { output::print_json(value) } else { output::print(text) }
    }

    /// The state directory that the user named, else `name` in the current folder.
    fn state_or(&self, name: &str) -> StateDir {
        if self.dir_was_given {
            return self.state.clone();
        }
        let current = std::env::current_dir().unwrap_or_default();
        StateDir::choose(Some(Path::new(name)), &current)
    }

    /// The configuration of a command that works on a model, named by `--model` or in
    /// `chandler.toml`.
    fn config_for(&self, model: Option<&str>) -> Result<Config, Failure> {
        let flags = model
            .map(|model| FlagValue { flag: "--model", key: "model.path", value: model.to_owned() })
            .into_iter()
            .collect();
        Ok(self.config(flags)?.config)
    }

    /// The state directory, which must exist.
    fn state(&self) -> Result<StateDir, Failure> {
        Ok(self.state.clone().open()?)
    }

    /// The configuration: of the state directory if there is one, with the environment, `flags` and
    /// `--set` over it.
    fn config(&self, flags: Vec<FlagValue>) -> Result<ResolvedConfig, Failure> {
        let file = self.state.config_file();
        let is_there = chandler_durable::is_there(&file).map_err(StateDirError::from)?;
        Ok(ResolvedConfig::load(&ConfigSources {
            file: is_there.then_some(file),
            env: unicode_variables(),
            flags,
            set: self.set.clone(),
        })?)
    }
}

/// The environment; variables that are not Unicode cannot be ours.
fn unicode_variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
