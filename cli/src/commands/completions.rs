//! `chandler completions`.

use clap::Args;
use clap_complete::Shell;

use super::{App, public_command};
use crate::exit::Exit;
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(app: &App, args: &CompletionsArgs) -> Result<Exit, Failure> {
    let script = script(args.shell);
    let value = serde_json::json!({ "shell": args.shell.to_string(), "script": script });
    app.print(&script, &value)?;
    Ok(Exit::Ok)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut public_command(), "chandler", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_completes_all_commands_and_nothing_hidden() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            for word in ["status", "preview", "--watch", "eval-now", "--priority"] {
                let bare = word.trim_start_matches('-');
                assert!(script.contains(bare), "{shell}: {word}");
            }
            for hidden in [crate::worker::SUBCOMMAND, "supervised-by", "supervised_by"] {
                assert!(!script.contains(hidden), "{shell}: {hidden}");
            }
        }
    }
}
