//! `chandler push`.

use std::path::{Path, PathBuf};

use chandler_model::hub::{CARD_FILE, Push, PushError, PushOptions, Upload};
use clap::Args;
use serde_json::json;

use super::App;
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::export::{Facts, License, card};
use crate::failure::Failure;
use crate::logging::{self, Progress};
use crate::output;
use crate::store::Store;

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
    let card = new_card(app, args, &push, folder)?;
    let progress = Progress::new(&app.terminal);
    let tell = |now: Upload| progress.download(&now.file, now.done, Some(now.total));
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
) -> Result<Option<String>, Failure> {
    if folder.join(CARD_FILE).is_file() || push.has_card().map_err(EngineError::from)? {
        return Ok(None);
    }
    // What the state directory knows is about its own models alone.
    let is_ours = match (folder.canonicalize(), app.state.root().canonicalize()) {
        (Ok(folder), Ok(root)) => folder.starts_with(root),
        _ => false,
    };
    let database = app.state.database();
    let facts = if is_ours && database.is_file() {
        Facts::of_newest_run(&Store::open(&database)?)?
    } else {
        Facts::default()
    };
    let facts = Facts { adapter: folder.join("adapter_config.json").is_file(), ..facts };
    let license = facts.base_on_hub().and_then(|base| push.card_of(base));
    let license = license.as_ref().and_then(License::of_card);
    Ok(Some(card(&args.repository, &facts, license.as_ref())))
}
