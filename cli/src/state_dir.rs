//! The state directory: where everything of one daemon lies.
//!
//! ```text
//! chandler.toml   configuration
//! inbox/          files to learn from; inbox/high and inbox/low by priority
//! processing/     the file that is being learned from
//! done/           files that were learned from
//! failed/         files that were not, each with a report
//! chandler.db     queue, runs, events, metrics, samples
//! checkpoints/    what a run resumes from
//! snapshots/      one model a day, YYYY-MM-DD
//! evals/          eval sets: NAME.jsonl, and NAME.toml for how it is asked
//! model/          the newest model, in Hugging Face format
//! logs/           JSON lines
//! runs/           event files for TensorBoard, where log.tensorboard asks for them
//! cache/          tokenised files, by hash
//! control/        the socket that commands talk through
//! token           what the HTTP server asks for; for its owner alone
//! lock            held while a daemon runs; never removed
//! when_idle.lock  held while the program of `daemon.when_idle` runs
//! ```

use std::io;
use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, DurableError, RealFs};

use crate::export::run_folder;
use crate::priority::Priority;

/// The folder that is used where neither `--dir` nor `CHANDLER_DIR` names one and the current
/// folder is no state directory.
pub const DEFAULT_NAME: &str = "chandler-state";

/// The configuration file of a state directory.
pub const CONFIG_NAME: &str = "chandler.toml";

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// There is none at this place.
    #[error("there is no state directory at {}", path.display())]
    Missing {
        /// The place.
        path: PathBuf,
    },
    /// `init` would overwrite a configuration.
    #[error("{} already has a chandler.toml", path.display())]
    AlreadyThere {
        /// The state directory.
        path: PathBuf,
    },
    /// A file could not be written into it.
    #[error("cannot write into {}", path.display())]
    NotWritable {
        /// The folder that refused.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A folder or file could not be made.
    #[error(transparent)]
    Durable {
        /// The cause, which names path and operation.
        #[from]
        source: DurableError,
    },
}

impl StateDirError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path } => Some(format!(
                "`chandler init --dir {}` makes one; --dir or CHANDLER_DIR names another",
                path.display()
            )),
            Self::AlreadyThere { .. } => {
                Some("`chandler run` starts it; `chandler config show` prints it".to_owned())
            }
            Self::NotWritable { path, .. } => Some(format!(
                "check the owner and mode of {}, or name another folder with --dir",
                path.display()
            )),
            Self::Durable { source } => source
                .hint()
                .or_else(|| Some("name another folder with --dir or CHANDLER_DIR".to_owned())),
        }
    }
}

/// A state directory by its path; see the module's text for what lies where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The directory that the user means: `--dir` or `CHANDLER_DIR` (`given`), else the current
    /// folder if it is a state directory, else `chandler-state` in it.
    pub fn choose(given: Option<&Path>, current: &Path) -> Self {
        let root = match given {
            Some(path) => current.join(path),
            None if current.join(CONFIG_NAME).is_file() => current.to_owned(),
            None => current.join(DEFAULT_NAME),
        };
        Self { root }
    }

    /// The directory, if it exists and holds a configuration.
    pub fn open(self) -> Result<Self, StateDirError> {
        if durable::is_there(&self.config_file())? {
            Ok(self)
        } else {
            Err(StateDirError::Missing { path: self.root })
        }
    }

    /// Makes the folders and a `chandler.toml` with this text.
    pub fn init(&self, config_text: &str) -> Result<(), StateDirError> {
        if durable::is_there(&self.config_file())? {
            return Err(StateDirError::AlreadyThere { path: self.root.clone() });
        }
        self.create_folders()?;
        durable::write(&self.config_file(), config_text.as_bytes())?;
        Ok(())
    }

    /// Makes the folders that are missing.
    pub fn create_folders(&self) -> Result<(), StateDirError> {
        for folder in self.folders_from_the_start() {
            durable::create_folder_all(&RealFs, &folder)?;
        }
        Ok(())
    }

    fn folders_from_the_start(&self) -> [PathBuf; 11] {
        [
            self.inbox(Priority::Normal),
            self.inbox(Priority::High),
            self.inbox(Priority::Low),
            self.processing(),
            self.done(),
            self.failed(),
            self.checkpoints(),
            self.snapshots(),
            self.evals(),
            self.logs(),
            self.cache(),
        ]
    }

    /// Tries to write a file that leaves no trace into each folder that a run writes to.
    pub fn check_writable(&self) -> Result<(), StateDirError> {
        for folder in
            [self.root.clone(), self.processing(), self.done(), self.failed(), self.checkpoints()]
        {
            write_nameless(&folder)
                .or_else(|errno| match errno {
                    // Not every file system knows files without names.
                    rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR => {
                        rustix::fs::access(&folder, rustix::fs::Access::WRITE_OK)
                    }
                    // Whoever works waits for room; a start must not fail for want of it.
                    rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT => Ok(()),
                    other => Err(other),
                })
                .map_err(|errno| StateDirError::NotWritable {
                    path: folder,
                    source: errno.into(),
                })?;
        }
        Ok(())
    }

    /// The folders in it that are chandler's, whether or not they are there.
    pub fn own_folders(&self) -> Vec<PathBuf> {
        let later = [self.model(), self.root.join("runs"), self.control()];
        self.folders_from_the_start().into_iter().chain(later).collect()
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// `chandler.toml`.
    pub fn config_file(&self) -> PathBuf {
        self.root.join(CONFIG_NAME)
    }
    /// `inbox/`, or its folder for a priority.
    pub fn inbox(&self, priority: Priority) -> PathBuf {
        match priority {
            Priority::High => self.root.join("inbox/high"),
            Priority::Normal => self.root.join("inbox"),
            Priority::Low => self.root.join("inbox/low"),
        }
    }
    /// `processing/`.
    pub fn processing(&self) -> PathBuf {
        self.root.join("processing")
    }
    /// `done/`.
    pub fn done(&self) -> PathBuf {
        self.root.join("done")
    }
    /// `failed/`.
    pub fn failed(&self) -> PathBuf {
        self.root.join("failed")
    }
    /// `chandler.db`.
    pub fn database(&self) -> PathBuf {
        self.root.join("chandler.db")
    }
    /// `when_idle.lock`.
    pub fn when_idle_lock(&self) -> PathBuf {
        self.root.join("when_idle.lock")
    }
    /// `checkpoints/`.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }
    /// The folder in it for a job.
    pub fn checkpoints_of(&self, job_id: i64) -> PathBuf {
        self.checkpoints().join(format!("job-{job_id}"))
    }
    /// `snapshots/`.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }
    /// `evals/`, with the eval sets.
    pub fn evals(&self) -> PathBuf {
        self.root.join("evals")
    }
    /// `model/`, which exists once something was learned.
    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }
    /// `logs/`.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    /// The folder in `runs/` for TensorBoard's event files of a run; made by a run that writes some.
    pub fn events_of(&self, run_id: i64) -> PathBuf {
        self.root.join("runs").join(run_folder(run_id))
    }
    /// `cache/`, with tokenised files by hash; may be removed while no daemon runs.
    pub fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }
    /// `control/`, with the socket that commands talk through.
    pub fn control(&self) -> PathBuf {
        self.root.join("control")
    }
    /// `token`, which the HTTP server asks for.
    pub fn token_file(&self) -> PathBuf {
        self.root.join("token")
    }
    /// `lock`, never removed.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// Makes a file without a name in `folder`, for a moment.
#[cfg(target_os = "linux")]
fn write_nameless(folder: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR, mode).map(drop)
}

/// There are none but on Linux.
#[cfg(not(target_os = "linux"))]
fn write_nameless(_: &Path) -> rustix::io::Result<()> {
    Err(rustix::io::Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_meant_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let current = folder.path();
        assert_eq!(StateDir::choose(None, current).root(), current.join(DEFAULT_NAME));
        assert_eq!(StateDir::choose(Some(Path::new("x")), current).root(), current.join("x"));
        assert_eq!(StateDir::choose(Some(Path::new("/y")), current).root(), Path::new("/y"));
        durable::write(&current.join(CONFIG_NAME), b"").unwrap();
        assert_eq!(StateDir::choose(None, current).root(), current);
    }

    #[test]
    fn init_makes_everything_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(Path::new("state")), folder.path());
        assert!(matches!(state.clone().open(), Err(StateDirError::Missing { .. })));
        state.init("# here\n").unwrap();
        assert!(state.inbox(Priority::High).is_dir());
        state.check_writable().unwrap();
        assert!(matches!(state.init(""), Err(StateDirError::AlreadyThere { .. })));
        assert_eq!(std::fs::read_to_string(state.config_file()).unwrap(), "# here\n");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        durable::write(&folder.path().join("file"), b"").unwrap();
        let state = StateDir::choose(Some(Path::new("file/state")), folder.path());
        let error = state.init("").unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
        assert!(error.hint().unwrap().contains("--dir"));
    }
}
