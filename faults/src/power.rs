//! The power goes, after any operation, and takes any of the changes with it that were not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use chandler_durable::{FolderEntry, Fs, FsFile, Manifest, Verdict, verify};
use rusqlite::Connection;

use crate::call::Kind;
use crate::disk::{Contents, Disk, Loss};
use crate::oracle::{Oracle, digest};
use crate::random::Random;
use crate::recorder::{Event, Recorder, Replay};
use crate::scenario::Scenario;
use crate::tracer::{self, Ending};

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Operations after which the power went.
    pub operations: u64,
    /// States of the disk that were looked at.
    pub states: u64,
    /// Of these, states from which the daemon was started and ran to its end.
    pub lives: u64,
}

/// How thoroughly to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Losses drawn for each operation.
    pub losses: u64,
    /// Every so many states, the daemon is started from one.
    pub life_every: u64,
    /// Of the operations, every so many are looked at.
    pub stride: u64,
    /// The disk says that it has synced, and has not: a campaign that finds nothing then would find
    /// nothing ever.
    pub disk_lies: bool,
}

/// Records a life and loses the power after its operations.
pub fn campaign(
    scenario: &Scenario,
    oracle: &Oracle,
    effort: Effort,
    seed: u64,
    progress: &mut dyn FnMut(&Tally),
) -> Result<Tally> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().canonicalize()?;
    let state = root.join("state");
    scenario.prepare(&state)?;
    let mut replay = Replay::new(Disk::of(&state)?);
    let events = record(scenario, &state)?;
    oracle.check(&state)?;
    std::fs::remove_dir_all(&state)?;
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut kept = Kept::default();
    for (at, event) in events.iter().enumerate() {
        if !(effort.disk_lies && event.kind == Kind::Sync) {
            replay.step(event);
        }
        // What is there with every unsynced change lost is safe, and must stay so.
        let worst = Found::on(&replay.disk.after(Loss::Everything), oracle)
            .with_context(|| format!("after operation {at} ({})", event.label))?;
        kept.raise(&worst);
        if !(at as u64).is_multiple_of(effort.stride) {
            continue;
        }
        tally.operations += 1;
        for loss in losses(&mut random, effort.losses) {
            let contents = replay.disk.after(loss);
            let found = Found::on(&contents, oracle).and_then(|found| kept.check(&found));
            found.with_context(|| format!("{loss:?} after operation {at} ({})", event.label))?;
            tally.states += 1;
            if tally.states.is_multiple_of(effort.life_every) {
                live(scenario, oracle, &contents).with_context(|| {
                    format!("a life from {loss:?} after operation {at} ({})", event.label)
                })?;
                tally.lives += 1;
            }
        }
        progress(&tally);
    }
    // It ended with 0, which says that everything is done.
    let end = Found::on(&replay.disk.after(Loss::Everything), oracle)?;
    let all_done = end.jobs.len() == oracle.data.len() && end.jobs.values().all(|s| s == "done");
    ensure!(all_done, "it ended well, and after a power loss jobs are {:?}", end.jobs);
    Ok(tally)
}

fn losses(random: &mut Random, count: u64) -> Vec<Loss> {
    let mut all = vec![Loss::Everything, Loss::Nothing];
    while (all.len() as u64) < count {
        let seed = random.below(u64::MAX);
        all.push(if all.len() % 2 == 0 { Loss::Any(seed) } else { Loss::Journal(seed) });
    }
    all
}

fn record(scenario: &Scenario, state: &Path) -> Result<Vec<Event>> {
    let mut recorder = Recorder::new(state);
    let mut command = scenario.daemon(state)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let ending = tracer::run(&mut command, state, &mut recorder)?;
    ensure!(ending == Ending::Code(0), "the recorded life ended with {ending:?}");
    ensure!(recorder.trouble.is_none(), "not understood: {:?}", recorder.trouble);
    Ok(recorder.events)
}

/// Starts the daemon on what a power loss left.
fn live(scenario: &Scenario, oracle: &Oracle, contents: &Contents) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().canonicalize()?.join("state");
    lay_out(contents, &state, |_| true)?;
    let output = scenario.live(&state)?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {words}", output.status);
    oracle.check(&state).with_context(|| words.into_owned())
}

/// Writes the chosen contents to a real folder.
fn lay_out(contents: &Contents, to: &Path, choose: impl Fn(&str) -> bool) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for (path, bytes) in contents.iter().filter(|(path, _)| choose(path)) {
        match bytes {
            Some(bytes) => {
                #[expect(clippy::disallowed_methods, reason = "nothing here has to survive")]
                std::fs::write(to.join(path), bytes)?;
            }
            None => std::fs::create_dir(to.join(path))?,
        }
    }
    Ok(())
}

/// What is worth keeping among the contents of a disk.
#[derive(Debug, Default)]
struct Found {
    /// The job and the step of the newest checkpoint that is whole.
    checkpoint: Option<(i64, u64)>,
    /// The job that the model learned from last which lies whole in `model/`.
    model: Option<i64>,
    /// Steps in the database, by their jobs.
    steps: BTreeSet<(i64, i64)>,
    /// Jobs in the database, with their states.
    jobs: BTreeMap<i64, String>,
}

impl Found {
    fn on(contents: &Contents, oracle: &Oracle) -> Result<Self> {
        let there: BTreeSet<String> = contents
            .iter()
            .filter(|(path, _)| {
                ["inbox/", "processing/", "done/", "failed/"].iter().any(|at| path.starts_with(at))
            })
            .filter_map(|(_, bytes)| bytes.as_deref().map(digest))
            .collect();
        for data in &oracle.data {
            ensure!(there.contains(data), "a file is gone");
        }
        let model = whole(contents, "model")?.and_then(|model| model.extra["job_id"].as_i64());
        let mut found = Self { model, ..Self::default() };
        for path in contents.keys() {
            if let Some(checkpoint) = checkpoint_of(path)
                && whole(contents, path)?.is_some()
            {
                found.checkpoint = found.checkpoint.max(Some(checkpoint));
            }
        }
        found.read_database(contents)?;
        let done = |(id, state): (&i64, &String)| (state == "done").then_some(*id);
        let last_done = found.jobs.iter().filter_map(done).max();
        ensure!(
            found.model >= last_done,
            "job {last_done:?} is done, and the model is that of {:?}",
            found.model
        );
        Ok(found)
    }

    /// Whether the job of a checkpoint is done.
    fn is_done(&self, checkpoint: Option<(i64, u64)>) -> bool {
        checkpoint.is_some_and(|(job, _)| self.jobs.get(&job).is_some_and(|state| state == "done"))
    }

    fn read_database(&mut self, contents: &Contents) -> Result<()> {
        const NAME: &str = "chandler.db";
        if !matches!(contents.get(NAME), Some(Some(bytes)) if !bytes.is_empty()) {
            return Ok(());
        }
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
        lay_out(contents, folder.path(), |path| path.starts_with(NAME))?;
        let connection = Connection::open(folder.path().join(NAME))?;
        let verdict: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .context("the database is damaged")?;
        ensure!(verdict == "ok", "the database is damaged: {verdict}");
        let has_tables = "SELECT count(*) FROM sqlite_schema WHERE name = 'metrics'";
        if connection.query_row(has_tables, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(());
        }
        let mut steps = connection
            .prepare("SELECT DISTINCT job_id, step FROM metrics JOIN runs ON runs.id = run_id")?;
        self.steps =
            steps.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let mut jobs = connection.prepare("SELECT id, state FROM jobs")?;
        self.jobs =
            jobs.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// The job and the step that a folder's name has, if it is that of a checkpoint.
fn checkpoint_of(path: &str) -> Option<(i64, u64)> {
    let (job, step) = path.strip_prefix("checkpoints/job-")?.split_once("/checkpoint-")?;
    Some((job.parse().ok()?, step.parse().ok()?))
}

/// The manifest of a folder that is there and whole.
fn whole(contents: &Contents, folder: &str) -> Result<Option<Manifest>> {
    if !contents.contains_key(folder) {
        return Ok(None);
    }
    Ok(match verify(&Shown(contents), Path::new(folder))? {
        Verdict::Whole(manifest) => Some(manifest),
        Verdict::Broken(_) => None,
    })
}

/// How far a job is; it never goes back.
fn rank(state: &str) -> usize {
    ["queued", "running", "done"].iter().position(|known| *known == state).unwrap_or(usize::MAX)
}

/// What was safe once, and so must be found ever after.
#[derive(Debug, Default)]
struct Kept(Found);

impl Kept {
    fn raise(&mut self, found: &Found) {
        self.0.checkpoint = self.0.checkpoint.max(found.checkpoint);
        self.0.model = self.0.model.max(found.model);
        self.0.steps.extend(&found.steps);
        for (id, state) in &found.jobs {
            self.0.jobs.insert(*id, state.clone());
        }
    }

    fn check(&self, found: &Found) -> Result<()> {
        let kept = &self.0;
        ensure!(
            // Those of a job go when it is done.
            found.checkpoint >= kept.checkpoint || found.is_done(kept.checkpoint),
            "checkpoint {:?} was safe, and {:?} is left",
            kept.checkpoint,
            found.checkpoint
        );
        ensure!(
            found.model >= kept.model,
            "the model of job {:?} was safe, and that of {:?} is left",
            kept.model,
            found.model
        );
        let lost: Vec<_> = kept.steps.difference(&found.steps).collect();
        ensure!(lost.is_empty(), "steps {lost:?} were safe, and are gone from the database");
        for (id, was) in &kept.jobs {
            let is =
                found.jobs.get(id).with_context(|| format!("job {id} was safe, and is gone"))?;
            ensure!(rank(is) >= rank(was), "job {id} was {was} for sure, and is {is}");
        }
        Ok(())
    }
}

/// The contents of a disk as a file system to read from.
struct Shown<'a>(&'a Contents);

fn name_of(path: &Path) -> String {
    path.to_string_lossy().trim_end_matches('/').to_owned()
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Fs for Shown<'_> {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        match self.0.get(&name_of(path)) {
            Some(Some(bytes)) => Ok(Box::new(io::Cursor::new(bytes.clone()))),
            Some(None) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FolderEntry>> {
        let prefix = format!("{}/", name_of(path));
        let entry = |(path, bytes): (&String, &Option<Vec<u8>>)| {
            let name = path.strip_prefix(&prefix)?;
            (!name.contains('/'))
                .then(|| FolderEntry { name: name.into(), is_folder: bytes.is_none() })
        };
        Ok(self.0.iter().filter_map(entry).collect())
    }

    fn create_new(&self, _: &Path, _: u32) -> io::Result<Box<dyn FsFile>> {
        read_only()
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn rename_new(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn remove_file(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn remove_folder_all(&self, _: &Path) -> io::Result<()> {
        read_only()
    }
    fn create_folder(&self, _: &Path, _: u32) -> io::Result<()> {
        read_only()
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}
