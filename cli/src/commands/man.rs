//! `chandler man`: manual pages, made from the same words as the help.

use std::path::PathBuf;

use chandler_durable::{self as durable, RealFs};
use clap::Args;
use clap_mangen::Man;
use serde_json::json;

use super::{App, public_command, reference};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write a page for each command; without it, the page of chandler itself is printed
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Print all commands as one page of Markdown, which is that of the book
    #[arg(long, conflicts_with = "folder")]
    markdown: bool,
}

/// A manual page.
struct Page {
    /// Such as `chandler-data-preview.1`.
    file_name: String,
    roff: Vec<u8>,
}

pub(super) fn man(app: &App, args: &ManArgs) -> Result<Exit, Failure> {
    if args.markdown {
        let page = reference::markdown();
        app.print(&page, &json!({ "page": page }))?;
        return Ok(Exit::Ok);
    }
    let failed = |error: std::io::Error| Failure::new(Exit::Error, error, None);
    let pages = pages().map_err(failed)?;
    let Some(folder) = &args.folder else {
        let text = pages.first().map(|page| String::from_utf8_lossy(&page.roff));
        let text = text.unwrap_or_default();
        app.print(&text, &json!({ "page": text }))?;
        return Ok(Exit::Ok);
    };
    let failed = |error: durable::DurableError| {
        let hint = error.hint().or_else(|| Some("name another folder".to_owned()));
        Failure::new(Exit::Error, error, hint)
    };
    durable::create_folder_all(&RealFs, folder).map_err(failed)?;
    let mut written = Vec::new();
    for page in &pages {
        let path = folder.join(&page.file_name);
        durable::write(&path, &page.roff).map_err(failed)?;
        written.push(path.display().to_string());
    }
    if app.json {
        output::print_json(&json!({ "pages": written }))?;
    } else {
        output::print(&format!("{} pages in {}\n", written.len(), folder.display()))?;
    }
    Ok(Exit::Ok)
}

/// The page of chandler itself, then one for each command.
fn pages() -> std::io::Result<Vec<Page>> {
    let mut command = public_command();
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages)?;
    Ok(pages)
}

fn collect(command: &clap::Command, pages: &mut Vec<Page>) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut roff = Vec::new();
    Man::new(command.clone()).render(&mut roff)?;
    pages.push(Page { file_name: format!("{name}.1"), roff });
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        collect(subcommand, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn count(command: &clap::Command) -> usize {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        1 + shown.map(count).sum::<usize>()
    }

    #[test]
    fn every_command_has_a_page_and_none_that_is_hidden() {
        let pages = pages().unwrap();
        assert_eq!(pages.len(), count(&crate::commands::Cli::command()));
        let names: Vec<&str> = pages.iter().map(|page| page.file_name.as_str()).collect();
        assert_eq!(names[0], "chandler.1");
        for name in ["chandler-run.1", "chandler-data-preview.1", "chandler-eval-now.1"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for page in &pages {
            let text = String::from_utf8_lossy(&page.roff);
            assert!(text.contains(".TH") && text.contains("SYNOPSIS"), "{}", page.file_name);
            assert!(!text.contains(crate::worker::SUBCOMMAND) && !text.contains("supervised"));
        }
    }
}
