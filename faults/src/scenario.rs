//! A daemon with little to do: a tiny model, one file, a few steps with checkpoints and evaluations.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// The name of the file that is learned from.
pub const FILE_NAME: &str = "rows.jsonl";

/// What the daemon is given to do.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The binary under test.
    pub binary: PathBuf,
    /// A model folder.
    pub model: PathBuf,
    /// The file to learn from.
    pub data: PathBuf,
    /// Settings, as `--set` takes them.
    pub settings: Vec<String>,
    /// Variables of the environment.
    pub environment: Vec<(String, String)>,
}

impl Scenario {
    /// `steps` steps with a checkpoint every second and an evaluation every third one.
    pub fn small(binary: &Path, steps: u64) -> Result<Self> {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens");
        let goldens = goldens.canonicalize().context("the fixtures are not there")?;
        let settings = [
            &format!("train.max_steps={steps}"),
            "train.save_steps=2",
            "train.per_device_train_batch_size=2",
            "data.max_length=160",
            "eval.eval_steps=3",
            "eval.samples=1",
            "eval.max_new_tokens=3",
            "daemon.min_free_gib=0",
            "daemon.settle_seconds=0",
            "daemon.max_attempts=1000",
        ];
        Ok(Self {
            binary: binary.to_owned(),
            model: goldens.join("models/qwen3"),
            data: goldens.join("data/chat.jsonl"),
            settings: settings.map(str::to_owned).to_vec(),
            environment: vec![("RAYON_NUM_THREADS".to_owned(), "1".to_owned())],
        })
    }

    /// A command of the binary, without the user's own settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CHANDLER_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().cloned()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Makes a state directory with the file in its inbox.
    pub fn prepare(&self, state: &Path) -> Result<()> {
        let dir = text(state)?;
        self.must(&["init", "--dir", dir, "--model", text(&self.model)?])?;
        fs::copy(&self.data, state.join("inbox").join(FILE_NAME))?;
        Ok(())
    }

    /// The daemon that works until nothing waits.
    pub fn daemon(&self, state: &Path) -> Result<Command> {
        let mut command = self.command(&["run", "--once", "--dir", text(state)?]);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        Ok(command)
    }

    /// The daemon that works until it is told to end, without a parent that watches it.
    pub fn lasting_daemon(&self, state: &Path) -> Result<Command> {
        let mut command = self.watched_daemon(state)?;
        command.args(["--set", "daemon.restart=false"]);
        Ok(command)
    }

    /// The daemon that works until it is told to end, and its parent that starts it anew.
    pub fn watched_daemon(&self, state: &Path) -> Result<Command> {
        let mut command = self.command(&["run", "--dir", text(state)?]);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        Ok(command)
    }

    /// A life of the daemon in which nothing is done to it.
    pub fn live(&self, state: &Path) -> Result<Output> {
        Ok(self.daemon(state)?.output()?)
    }

    fn must(&self, arguments: &[&str]) -> Result<()> {
        let output = self.command(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} failed: {errors}");
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not Unicode")
}
