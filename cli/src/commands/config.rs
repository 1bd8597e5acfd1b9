//! `chandler config`.

use clap::Subcommand;

use super::App;
use crate::config::{as_toml, reference_list, reference_markdown};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the configuration in force, with the origin of each value
    Show,
    /// Print every key with its type, default and meaning, as Markdown
    Reference,
}

pub(super) fn config(app: &App, command: &ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Reference if app.json => output::print_json(&reference_list())?,
        ConfigCommand::Reference => output::print(&reference_markdown())?,
        ConfigCommand::Show => show(app)?,
    }
    Ok(Exit::Ok)
}

fn show(app: &App) -> Result<(), Failure> {
    let resolved = app.config(Vec::new())?;
    let values = resolved.values();
    if app.json {
        let object: serde_json::Map<String, serde_json::Value> = values
            .into_iter()
            .map(|(key, value, origin)| {
                let entry = serde_json::json!({ "value": value, "origin": origin.to_string() });
                (key.path(), entry)
            })
            .collect();
        return output::print_json(&object);
    }
    let mut text = String::new();
    let mut section = "";
    let mut rows = Vec::new();
    for (key, value, origin) in values {
        if key.section != section {
            text += &output::table(&std::mem::take(&mut rows));
            text += &format!("{}[{}]\n", if section.is_empty() { "" } else { "\n" }, key.section);
            section = key.section;
        }
        rows.push(vec![format!("{} = {}", key.name, as_toml(&value)), format!("# {origin}")]);
    }
    text += &output::table(&rows);
    output::print(&text)
}
