//! `chandler dashboard`.

use std::process::{Command, Stdio};

use clap::Args;

use super::App;
use crate::control::{self, Request, Response};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::http::read_token;

#[derive(Debug, Args)]
pub(super) struct DashboardArgs {
    /// Open it in the browser as well
    #[arg(long)]
    open: bool,
}

pub(super) fn dashboard(app: &App, args: &DashboardArgs) -> Result<Exit, Failure> {
    let state = app.state()?;
    let Response::Status(live) = control::ask(&state, &Request::Status)? else {
        return Err(no_page("the daemon did not say where its page is"));
    };
    let base = live.http.ok_or_else(|| no_page("the daemon that is running has no page"))?;
    let token = read_token(&state.token_file())?;
    let url = format!("{base}/?token={}", token.as_str());
    app.print(&format!("{url}\n"), &serde_json::json!({ "url": url }))?;
    if args.open {
        open(&url)?;
    }
    Ok(Exit::Ok)
}

fn no_page(what: &str) -> Failure {
    let hint = "set http.enabled to true and start the daemon again";
    Failure::new(Exit::Error, anyhow::anyhow!(what.to_owned()), Some(hint.to_owned()))
}

/// With the desktop's own opener. It gets the address as an argument, which other processes of the
/// machine can see while it runs.
fn open(url: &str) -> Result<(), Failure> {
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    Command::new(opener)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
        .map_err(|error| {
            let error = anyhow::Error::new(error).context(format!("cannot start {opener}"));
            Failure::new(Exit::Error, error, Some("open the address above by hand".to_owned()))
        })
}
