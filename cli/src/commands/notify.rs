//! `chandler notify`.

use clap::Subcommand;
use serde_json::json;

use super::App;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::notify;

#[derive(Debug, Subcommand)]
pub(super) enum NotifyCommand {
    /// Send a test to every webhook, and to the desktop where it is told, and say what came back
    Test,
}

pub(super) fn notify(app: &App, command: &NotifyCommand) -> Result<Exit, Failure> {
    match command {
        NotifyCommand::Test => test(app),
    }
}

fn test(app: &App) -> Result<Exit, Failure> {
    let state = app.state()?;
    let config = app.config(Vec::new())?.config.notify;
    let tested = notify::test(&state, &config).map_err(|error| {
        let hint = error.hint();
        Failure::new(Exit::Error, error, hint)
    })?;
    if tested.is_empty() {
        let hint = "write [[notify.webhooks]] with a url into chandler.toml, or desktop = true \
                    below [notify]";
        let error = anyhow::anyhow!("nobody is to be told of anything");
        return Err(Failure::new(Exit::Usage, error, Some(hint.to_owned())));
    }
    let (mut text, mut told) = (String::new(), vec![]);
    for test in &tested {
        let taken = test.answer.is_ok();
        let (Ok(answer) | Err(answer)) = &test.answer;
        let (word, took) = (if taken { "taken" } else { "not taken" }, test.took.as_millis());
        text += &format!("{}: {word}, {answer} ({took} ms)\n", test.place);
        let took = test.took.as_secs_f64();
        told.push(json!({
            "place": test.place, "taken": taken, "answer": answer, "seconds": took,
        }));
    }
    app.print(&text, &told)?;
    let failed = tested.iter().filter(|test| test.answer.is_err()).count();
    if failed == 0 {
        return Ok(Exit::Ok);
    }
    let error = anyhow::anyhow!("{failed} of {} did not take it", tested.len());
    let hint = "check the address, and whether a proxy or a firewall stands between";
    Err(Failure::new(Exit::Error, error, Some(hint.to_owned())))
}
