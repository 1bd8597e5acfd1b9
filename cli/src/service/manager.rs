//! Where the files of a service lie, and the commands that put them in force.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use chandler_durable::{DurableError, RealFs, create_folder_all, is_there};

use super::plan::{MARK, Scope, ServicePlan};
use super::{launchd, systemd};

/// Why a service was not installed, removed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The system is run by something else.
    #[error("this system is not run by systemd")]
    NoManager,
    /// There is no home to put a user's service into.
    #[error("this user has no home directory")]
    NoHome,
    /// A file of that name is somebody else's.
    #[error("{} was not written by `chandler service install`", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// There is no such service.
    #[error("there is no service {name}: {} is not there", path.display())]
    Missing {
        /// Its name.
        name: String,
        /// The file it would have.
        path: PathBuf,
    },
    /// The file could not be read or removed.
    #[error("cannot read or remove {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// The manager's program could not be run.
    #[error("cannot run `{command}`")]
    Run {
        /// The command.
        command: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manager did not do what it was asked.
    #[error("`{command}` failed: {answer}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        answer: String,
    },
}

impl ServiceError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoManager => "start `chandler run` by what runs this system; packaging/ has a \
                                Dockerfile and a manifest for Kubernetes, and --dry-run prints a unit"
                .to_owned(),
            Self::NoHome => "set HOME, or install it for the machine with --system".to_owned(),
            Self::Foreign { path } => {
                format!("give another --name, or move {} away", path.display())
            }
            Self::Missing { .. } => "`chandler service install` makes one; --name and --system \
                                     say which is meant"
                .to_owned(),
            Self::File { .. } | Self::Write(_) => {
                "a service of the machine (--system) is installed by root".to_owned()
            }
            Self::Run { .. } => "check that the program is installed and in PATH".to_owned(),
            Self::Refused { .. } => "over ssh or sudo a user's manager may not be there: log in as \
                                     that user, or use --system"
                .to_owned(),
        })
    }
}

/// Who runs services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// On Linux.
    Systemd,
    /// On macOS.
    Launchd,
}

impl Manager {
    /// That of this operating system, whether or not it runs.
    pub fn of_this_system() -> Self {
        if cfg!(target_os = "macos") { Self::Launchd } else { Self::Systemd }
    }

    /// An error where it does not run this system.
    pub fn must_run(self) -> Result<(), ServiceError> {
        // sd_booted(3).
        let is_there = self == Self::Launchd || Path::new("/run/systemd/system").is_dir();
        if is_there { Ok(()) } else { Err(ServiceError::NoManager) }
    }
}

/// One service of one manager.
#[derive(Debug, Clone)]
pub struct Service {
    manager: Manager,
    scope: Scope,
    name: String,
    file: PathBuf,
}

impl Service {
    /// The service of this name, installed or not.
    pub fn new(manager: Manager, scope: Scope, name: &str) -> Result<Self, ServiceError> {
        let home = || std::env::home_dir().ok_or(ServiceError::NoHome);
        let folder = match (manager, scope) {
            (Manager::Systemd, Scope::System) => PathBuf::from("/etc/systemd/system"),
            (Manager::Systemd, Scope::User) => match std::env::var_os("XDG_CONFIG_HOME") {
                Some(config) => PathBuf::from(config).join("systemd/user"),
                None => home()?.join(".config/systemd/user"),
            },
            (Manager::Launchd, Scope::System) => PathBuf::from("/Library/LaunchDaemons"),
            (Manager::Launchd, Scope::User) => home()?.join("Library/LaunchAgents"),
        };
        let file = match manager {
            Manager::Systemd => format!("{name}.service"),
            Manager::Launchd => format!("{}.plist", launchd::label(name)),
        };
        Ok(Self { manager, scope, name: name.to_owned(), file: folder.join(file) })
    }

    /// Its file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is written there.
    pub fn text(&self, plan: &ServicePlan) -> String {
        match self.manager {
            Manager::Systemd => systemd::unit(plan),
            Manager::Launchd => launchd::property_list(plan),
        }
    }

    /// The commands that put it in force.
    pub fn enabling(&self) -> Vec<Vec<String>> {
        match self.manager {
            Manager::Systemd => {
                vec![
                    self.systemctl(&["daemon-reload"]),
                    self.systemctl(&["enable", "--now", &self.name]),
                ]
            }
            Manager::Launchd => {
                vec![words(&[
                    "launchctl",
                    "bootstrap",
                    &self.domain(),
                    &self.file.to_string_lossy(),
                ])]
            }
        }
    }

    /// The command that takes it out of force, and those that follow when its file is gone.
    fn disabling(&self) -> (Vec<String>, Option<Vec<String>>) {
        match self.manager {
            Manager::Systemd => (
                self.systemctl(&["disable", "--now", &self.name]),
                Some(self.systemctl(&["daemon-reload"])),
            ),
            Manager::Launchd => {
                let label = launchd::label(&self.name);
                (words(&["launchctl", "bootout", &format!("{}/{label}", self.domain())]), None)
            }
        }
    }

    /// Everything that `uninstall` does, as commands of a shell.
    pub fn removal(&self) -> Vec<String> {
        let (disable, reload) = self.disabling();
        let remove = format!("rm {}", self.file.display());
        let commands = [Some(disable.join(" ")), Some(remove), reload.map(|words| words.join(" "))];
        commands.into_iter().flatten().collect()
    }

    fn systemctl(&self, rest: &[&str]) -> Vec<String> {
        let user = (self.scope == Scope::User).then_some("--user");
        words(
            &["systemctl"].into_iter().chain(user).chain(rest.iter().copied()).collect::<Vec<_>>(),
        )
    }

    fn domain(&self) -> String {
        match self.scope {
            Scope::System => "system".to_owned(),
            Scope::User => format!("gui/{}", rustix::process::getuid().as_raw()),
        }
    }

    /// Writes the file and puts the service in force.
    pub fn install(&self, plan: &ServicePlan) -> Result<(), ServiceError> {
        self.manager.must_run()?;
        if is_there(&self.file)? {
            self.must_be_ours()?;
        }
        if let Some(folder) = self.file.parent() {
            create_folder_all(&RealFs, folder)?;
        }
        chandler_durable::write(&self.file, self.text(plan).as_bytes())?;
        self.enabling().iter().try_for_each(|command| run(command))
    }

    /// Takes the service out of force and removes its file.
    pub fn uninstall(&self) -> Result<(), ServiceError> {
        self.manager.must_run()?;
        self.must_be_there()?;
        self.must_be_ours()?;
        let (disable, reload) = self.disabling();
        run(&disable)?;
        std::fs::remove_file(&self.file)
            .map_err(|source| ServiceError::File { path: self.file.clone(), source })?;
        reload.iter().try_for_each(|command| run(command))
    }

    /// What the manager says about it, and whether it runs.
    pub fn status(&self) -> Result<(String, bool), ServiceError> {
        self.manager.must_run()?;
        self.must_be_there()?;
        let label = launchd::label(&self.name);
        let command = match self.manager {
            Manager::Systemd => self.systemctl(&["status", "--no-pager", "--lines=0", &self.name]),
            Manager::Launchd => {
                words(&["launchctl", "print", &format!("{}/{label}", self.domain())])
            }
        };
        let output = output_of(&command)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        Ok((format!("{said}{errors}"), output.status.success()))
    }

    fn must_be_there(&self) -> Result<(), ServiceError> {
        if is_there(&self.file)? {
            return Ok(());
        }
        Err(ServiceError::Missing { name: self.name.clone(), path: self.file.clone() })
    }

    fn must_be_ours(&self) -> Result<(), ServiceError> {
        let text = std::fs::read_to_string(&self.file)
            .map_err(|source| ServiceError::File { path: self.file.clone(), source })?;
        if text.contains(MARK) {
            return Ok(());
        }
        Err(ServiceError::Foreign { path: self.file.clone() })
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn run(command: &[String]) -> Result<(), ServiceError> {
    let output = output_of(command)?;
    if output.status.success() {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let answer = if answer.is_empty() { output.status.to_string() } else { answer };
    Err(ServiceError::Refused { command: command.join(" "), answer })
}

fn output_of(command: &[String]) -> Result<Output, ServiceError> {
    let failed = |source| ServiceError::Run { command: command.join(" "), source };
    let (program, arguments) =
        command.split_first().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_for_the_manager_and_its_scope() {
        let service = |manager, scope| Service::new(manager, scope, "chandler").unwrap();
        let user = service(Manager::Systemd, Scope::User);
        assert_eq!(user.enabling()[1].join(" "), "systemctl --user enable --now chandler");
        let system = service(Manager::Systemd, Scope::System);
        assert_eq!(system.file(), Path::new("/etc/systemd/system/chandler.service"));
        assert_eq!(
            system.removal(),
            [
                "systemctl disable --now chandler",
                "rm /etc/systemd/system/chandler.service",
                "systemctl daemon-reload",
            ]
        );
        let mac = service(Manager::Launchd, Scope::System);
        let path = "/Library/LaunchDaemons/chandler.chandler.plist";
        assert_eq!(mac.enabling()[0].join(" "), format!("launchctl bootstrap system {path}"));
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chandler.service");
        let (manager, scope, name) = (Manager::Systemd, Scope::User, "chandler".to_owned());
        let service = Service { manager, scope, name, file: file.clone() };
        assert!(matches!(service.must_be_there(), Err(ServiceError::Missing { .. })));
        chandler_durable::write(&file, b"[Unit]\n").unwrap();
        assert!(matches!(service.must_be_ours(), Err(ServiceError::Foreign { .. })));
        chandler_durable::write(&file, format!("# {MARK}.\n").as_bytes()).unwrap();
        service.must_be_ours().unwrap();
    }
}
