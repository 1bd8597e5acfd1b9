//! `chandler service`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::App;
use crate::config::Config;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::service::{Manager, Scope, Service, ServiceError, ServicePlan};

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// Have the daemon of a state directory run from now on, also after the machine is started
    Install {
        #[command(flatten)]
        which: Which,
        /// Print the file and the commands, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// End the service and remove it; the state directory stays
    Uninstall {
        #[command(flatten)]
        which: Which,
        /// Print the commands, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say whether the service runs
    Status {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// A service of the machine, run as the owner of the state directory [default: of the user]
    #[arg(long)]
    system: bool,
    /// What it is called; one for each state directory
    #[arg(long, default_value = "chandler", value_parser = a_name)]
    name: String,
}

fn a_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && text.chars().all(is_plain) && text.len() <= 64 {
        return Ok(text.to_owned());
    }
    Err("a name has letters, digits, '-', '_' and '.', and 64 of them at most".to_owned())
}

impl Which {
    fn scope(&self) -> Scope {
        if self.system { Scope::System } else { Scope::User }
    }

    fn service(&self) -> Result<Service, Failure> {
        Service::new(Manager::of_this_system(), self.scope(), &self.name).map_err(failure)
    }
}

pub(super) fn service(app: &App, command: &ServiceCommand) -> Result<Exit, Failure> {
    match command {
        ServiceCommand::Install { which, dry_run } => install(app, which, *dry_run),
        ServiceCommand::Uninstall { which, dry_run } => uninstall(app, which, *dry_run),
        ServiceCommand::Status { which } => status(app, which),
    }
}

fn failure(error: ServiceError) -> Failure {
    let exit = match &error {
        ServiceError::Missing { .. } => Exit::NotRunning,
        _ => Exit::Error,
    };
    let hint = error.hint();
    Failure::new(exit, error, hint)
}

fn install(app: &App, which: &Which, dry_run: bool) -> Result<Exit, Failure> {
    let service = which.service()?;
    let plan = plan(app, which)?;
    if dry_run {
        let (file, content) = (service.file(), service.text(&plan));
        let commands: Vec<String> =
            service.enabling().iter().map(|command| command.join(" ")).collect();
        let mut text = format!("# {}\n{content}\n", file.display());
        for command in &commands {
            text += &format!("# {command}\n");
        }
        app.print(&text, &json!({ "file": file, "text": content, "commands": commands }))?;
        return Ok(Exit::Ok);
    }
    service.install(&plan).map_err(failure)?;
    let mut text = format!("{} is written, and the service runs\n", service.file().display());
    let mut ends_with_session = false;
    if which.scope() == Scope::User && Manager::of_this_system() == Manager::Systemd {
        text += "it ends when you log out; `loginctl enable-linger` has it stay\n";
        ends_with_session = true;
    }
    let told = json!({ "file": service.file(), "ends_with_session": ends_with_session });
    app.print(&text, &told)?;
    Ok(Exit::Ok)
}

fn plan(app: &App, which: &Which) -> Result<ServicePlan, Failure> {
    let state = app.state()?;
    let config = app.config(Vec::new())?.config;
    let reads = named_by(&config);
    let daemon = config.daemon;
    let program =
        whole(&std::env::current_exe().map_err(|error| cannot_find("the program", error))?)?;
    let state_dir = whole(state.root())?;
    let owner = match which.scope() {
        Scope::User => None,
        Scope::System => {
            let metadata = state_dir
                .metadata()
                .map_err(|error| cannot_find("the owner of the state directory", error))?;
            if metadata.uid() == 0 {
                let dir = state_dir.display();
                app.terminal.print(&format!(
                    "warning: {dir} belongs to root, and so will the service; `chown` it to another \
                     user first\n"
                ));
            }
            Some((metadata.uid().to_string(), metadata.gid().to_string()))
        }
    };
    let hang = Duration::try_from_secs_f64(daemon.hang_seconds).ok();
    Ok(ServicePlan {
        scope: which.scope(),
        name: which.name.clone(),
        program,
        state_dir,
        reads,
        owner,
        hang: hang.filter(|hang| !hang.is_zero()),
    })
}

/// Where the model's folder and the program of `daemon.when_idle` really are, as far as they are on
/// this machine.
fn named_by(config: &Config) -> Vec<PathBuf> {
    let model = config.model.path.as_ref().map(|path| path.0.as_str());
    let program = config.daemon.when_idle.first().map(String::as_str);
    let named = model.into_iter().chain(program);
    named.filter_map(|named| Path::new(named).canonicalize().ok()).collect()
}

/// The path from the root, without links.
fn whole(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|error| cannot_find(&path.display().to_string(), error))
}

fn cannot_find(what: &str, error: std::io::Error) -> Failure {
    let error = anyhow::Error::new(error).context(format!("cannot find {what}"));
    Failure::new(Exit::Error, error, None)
}

fn uninstall(app: &App, which: &Which, dry_run: bool) -> Result<Exit, Failure> {
    let service = which.service()?;
    let file = service.file();
    if dry_run {
        let commands = service.removal();
        let text = format!("{}\n", commands.join("\n"));
        app.print(&text, &json!({ "file": file, "commands": commands }))?;
        return Ok(Exit::Ok);
    }
    service.uninstall().map_err(failure)?;
    let text = format!("{} is removed; the state directory stays\n", file.display());
    app.print(&text, &json!({ "file": file }))?;
    Ok(Exit::Ok)
}

fn status(app: &App, which: &Which) -> Result<Exit, Failure> {
    let (said, runs) = which.service()?.status().map_err(failure)?;
    app.print(&said, &json!({ "runs": runs, "said": said }))?;
    Ok(if runs { Exit::Ok } else { Exit::NotRunning })
}
