//! `chandler init`.

use clap::Args;
use serde_json::json;

use super::App;
use crate::config::{ConfigSources, ResolvedConfig, config_template};
use crate::engine::named_model;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::priority::Priority;
use crate::store::Store;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
}

pub(super) fn init(app: &App, args: &InitArgs) -> Result<Exit, Failure> {
    let model = args.model.as_deref().map(named_model).transpose()?;
    // Refuse a wrong --set before anything is made.
    ResolvedConfig::load(&ConfigSources { set: app.set.clone(), ..ConfigSources::default() })?;
    app.state.init(&config_template(model.as_deref()))?;
    Store::open(&app.state.database())?;
    let root = app.state.root().display();
    let mut text = format!("state directory {root}\n\nnext:\n");
    if model.is_none() {
        text += &format!("  set model.path in {}\n", app.state.config_file().display());
    }
    text += &format!(
        "  put a .jsonl file into {root}/inbox, or `chandler add --dir {root} FILE`\n  \
         chandler run --dir {root}\n"
    );
    let value = json!({
        "state_dir": app.state.root(),
        "config": app.state.config_file(),
        "inbox": app.state.inbox(Priority::Normal),
    });
    app.print(&text, &value)?;
    Ok(Exit::Ok)
}
