//! The configuration, and whether it names a model, and that which the newest one began from.

use super::super::App;
use super::check::Check;
use crate::config::Config;
use crate::engine::check_origin;

/// The check, and the configuration, or the defaults where it is wrong.
pub(super) fn check(app: &App) -> (Check, Config) {
    let resolved = match app.config(Vec::new()) {
        Err(failure) => return (Check::of_failure("configuration", &failure), Config::default()),
        Ok(resolved) => resolved,
    };
    let check = match &resolved.config.model.path {
        Some(model) => match check_origin(&app.state, &resolved.config) {
            Ok(()) => Check::ok("configuration", format!("model.path is {}", model.0)),
            Err(error) => Check::of_failure("configuration", &error.into()),
        },
        None => Check::warning(
            "configuration",
            "model.path is not set",
            "set it in chandler.toml, or with --set model.path=…",
        ),
    };
    (check, resolved.config)
}
