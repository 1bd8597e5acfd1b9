//! `chandler push`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use chandler_durable::MANIFEST_NAME;
use chandler_model::hub::{CARD_FILE, Push, PushError, PushOptions, Upload};
use clap::Args;
use serde_json::{Value, json};

use super::App;
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::export::{Facts, License, card};
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;
use crate::state_dir::StateDir;
use crate::store::Store;

const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Of that file; an honest one has a few hundred.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The repository, which is made if it is missing
    #[arg(value_name = "OWNER/NAME")]
    repository: String,
    /// The folder of a model or of an adapter [default: the newest model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A repository that is made is seen by its owner alone
    #[arg(long)]
    private: bool,
    /// The commit's message
    #[arg(long, value_name = "TEXT", default_value = "Upload a model trained with chandler")]
    message: String,
    /// Say as JSON what was uploaded
    #[arg(long)]
    json: bool,
}

pub(super) fn push(app: &App, args: &PushArgs) -> Result<Exit, Failure> {
    let config = app.config(vec![])?.config;
    logging::init(&config.log, &app.terminal, None)?;
    let newest = app.state.model();
    let folder = args.model.as_ref().unwrap_or(&newest);
    if !folder.is_dir() {
        return Err(EngineError::from(PushError::NothingThere { folder: folder.clone() }).into());
    }
    let options = PushOptions {
        private: args.private,
        message: args.message.clone(),
        ..PushOptions::default()
    };
    let push = Push::begin(&args.repository, &options).map_err(EngineError::from)?;
    let base = adapter_base(folder);
    if let Some(base) = base.as_ref().filter(|base| Path::new(base).is_absolute()) {
        let file = folder.join(ADAPTER_CONFIG);
        tracing::warn!(
            "{}: base_model_name_or_path is {base}, a path of this machine, where nobody else finds \
             the model; write its id on the hub there",
            file.display()
        );
    }
    let card = new_card(app, args, &push, folder, base)?;
    let progress = Progress::new(&app.terminal);
    let tell = |now: Upload| progress.upload(&now.file, now.done, now.total);
    let pushed = push.commit(folder, card.as_deref(), &tell);
    progress.end();
    let pushed = pushed.map_err(EngineError::from)?;
    if args.json {
        output::print_json_line(&json!({
            "url": pushed.url,
            "commit": pushed.commit,
            "files": pushed.files,
            "uploaded_bytes": pushed.uploaded_bytes,
        }))?;
    } else {
        let files = pushed.files.len();
        output::print(&format!("{}: {files} files in commit {}\n", pushed.url, pushed.commit))?;
    }
    Ok(Exit::Ok)
}

/// A card, unless the folder or the repository has one that somebody wrote.
fn new_card(
    app: &App,
    args: &PushArgs,
    push: &Push,
    folder: &Path,
    adapter_base: Option<String>,
) -> Result<Option<String>, Failure> {
    if folder.join(CARD_FILE).is_file() || push.has_card().map_err(EngineError::from)? {
        return Ok(None);
    }
    let database = app.state.database();
    let facts = if is_of_state(folder, &app.state) && database.is_file() {
        Facts::of_marked_model(&Store::open(&database)?, &mark_of(folder))?
    } else {
        // It stands in the card's metadata, and may come from anywhere.
        Facts { base_model: adapter_base.filter(|base| is_plain(base)), ..Facts::default() }
    };
    let facts = Facts { adapter: folder.join(ADAPTER_CONFIG).is_file(), ..facts };
    let license = facts.base_on_hub().and_then(|base| push.card_of(base));
    let license = license.as_ref().and_then(License::of_card);
    Ok(Some(card(&args.repository, &facts, license.as_ref())))
}

/// Whether a folder is one that the daemon makes of what it has learned: the newest model, or a
/// snapshot. What the state directory knows is about those alone.
fn is_of_state(folder: &Path, state: &StateDir) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    let is = |place: Option<&Path>, ours: PathBuf| {
        ours.canonicalize().is_ok_and(|ours| place == Some(ours.as_path()))
    };
    is(Some(&folder), state.model()) || is(folder.parent(), state.snapshots())
}

/// What the manifest of such a model says of the job that it learned from last.
fn mark_of(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join(MANIFEST_NAME)).unwrap_or_default();
    let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
    manifest.get("extra").cloned().unwrap_or_default()
}

/// Whether a name is one that the hub could have given.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@".contains(c);
    name.chars().all(plain) && !name.contains("..")
}

/// The base model that an adapter's folder names.
fn adapter_base(folder: &Path) -> Option<String> {
    let file = File::open(folder.join(ADAPTER_CONFIG)).ok()?;
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    config["base_model_name_or_path"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_model_and_snapshots_are_told_of_by_the_database() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::choose(Some(root.path()), root.path());
        let at = |name: &str| {
            let folder = root.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let (model, other) = (at("model"), at("exports/mine"));
        let snapshot = state.snapshots().join("2026-01-01");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert!(is_of_state(&model, &state) && is_of_state(&snapshot, &state));
        assert!(!is_of_state(&other, &state) && !is_of_state(root.path(), &state));
        assert!(!is_of_state(&state.snapshots(), &state));
        chandler_durable::write(&model.join(MANIFEST_NAME), br#"{"extra":{"job_id":7}}"#).unwrap();
        assert_eq!(mark_of(&model)["job_id"], 7);
        assert_eq!(mark_of(&other), Value::Null);
        let config = r#"{"base_model_name_or_path":"owner/name"}"#;
        chandler_durable::write(&other.join(ADAPTER_CONFIG), config.as_bytes()).unwrap();
        assert_eq!(adapter_base(&other).as_deref(), Some("owner/name"));
        assert_eq!(adapter_base(&model), None);
        assert!(is_plain("owner/name-1.5") && !is_plain("a/b\"\nlicense: mit"));
    }
}
