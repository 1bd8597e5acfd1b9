//! `chandler notify`.

use clap::Subcommand;

use super::App;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::notify;
use crate::output;

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
    let mut failed = 0;
    for test in &tested {
        let (word, answer) = match &test.answer {
            Ok(answer) => ("taken", answer),
            Err(why) => ("not taken", why),
        };
        failed += usize::from(test.answer.is_err());
        let took = test.took.as_millis();
        output::print(&format!("{}: {word}, {answer} ({took} ms)\n", test.place))?;
    }
    if failed == 0 {
        return Ok(Exit::Ok);
    }
    let error = anyhow::anyhow!("{failed} of {} did not take it", tested.len());
    let hint = "check the address, and whether a proxy or a firewall stands between";
    Err(Failure::new(Exit::Error, error, Some(hint.to_owned())))
}
