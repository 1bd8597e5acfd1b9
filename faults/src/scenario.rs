//! A daemon with little to do: a tiny model, one file or two, a few steps with checkpoints and
//! evaluations.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

/// The name of the first file that is learned from.
pub const FILE_NAME: &str = "rows.jsonl";

/// What the daemon is given to do.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The binary under test.
    pub binary: PathBuf,
    /// A model folder.
    pub model: PathBuf,
    /// The files to learn from, one after another.
    pub data: Vec<PathBuf>,
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
            data: vec![goldens.join("data/chat.jsonl")],
            settings: settings.map(str::to_owned).to_vec(),
            environment: vec![("RAYON_NUM_THREADS".to_owned(), "1".to_owned())],
        })
    }

    /// The same with a second file, so that a model is replaced by the next one, and with a checkpoint
    /// after every step of which one is kept, so that earlier ones go.
    pub fn two_files(binary: &Path, steps: u64) -> Result<Self> {
        let mut scenario = Self::small(binary, steps)?;
        let other = scenario.data[0].with_file_name("chat_nosys.jsonl");
        scenario.data.push(other);
        let settings = ["train.save_steps=1", "daemon.keep_checkpoints=1"];
        scenario.settings.extend(settings.map(str::to_owned));
        Ok(scenario)
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

    /// Makes a state directory with the files in its inbox.
    pub fn prepare(&self, state: &Path) -> Result<()> {
        let dir = text(state)?;
        self.must(&["init", "--dir", dir, "--model", text(&self.model)?])?;
        for (number, data) in self.data.iter().enumerate() {
            let name = match number {
                0 => FILE_NAME.to_owned(),
                // After it by name too: a folder that is laid out anew has other times.
                _ => format!("rows{}.jsonl", number + 1),
            };
            let place = state.join("inbox").join(&name);
            fs::copy(data, &place)?;
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + number as u64);
            File::options().write(true).open(&place)?.set_modified(at)?;
        }
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
