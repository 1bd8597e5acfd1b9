//! The commands as a page of the book: `chandler man --markdown`, made from the same words as the help.

use clap::{Arg, Command};

use super::public_command;

const HEAD: &str = "# Commands\n
Every command takes `--help`, which says what stands here; `chandler man DIR` writes manual pages. What
the process ends with, and what `--json` prints, is told in [For scripts](scripts.md).\n
This page is written by `chandler man --markdown`.\n";

/// The page.
pub(super) fn markdown() -> String {
    let mut command = public_command();
    command.build();
    let mut page = HEAD.to_owned();
    page += "\n## Options of every command\n";
    table(&mut page, command.get_arguments().filter(|argument| argument.is_global_set()));
    for command in subcommands(&command) {
        describe(&mut page, command, 2);
    }
    page
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| command.get_name() != "help")
}

fn describe(page: &mut String, command: &Command, level: usize) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    page.push_str(&format!("\n{} `{name}`\n\n{}.\n", "#".repeat(level), in_markdown(&about)));
    let own = |argument: &&Arg| !argument.is_global_set() && argument.get_id() != "help";
    let has_own = command.get_arguments().any(|argument| own(&argument));
    if has_own || subcommands(command).next().is_none() {
        let usage = command.clone().render_usage().to_string();
        let lines = usage.trim_start_matches("Usage: ").lines().map(str::trim);
        page.push_str(&format!("\n```text\n{}\n```\n", lines.collect::<Vec<_>>().join("\n")));
        table(page, command.get_arguments().filter(own));
    }
    for command in subcommands(command) {
        describe(page, command, level + 1);
    }
}

/// A row for each argument; nothing where there is none.
fn table<'a>(page: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: String = arguments.map(row).collect();
    if !rows.is_empty() {
        page.push_str(&format!("\n| argument | meaning |\n|---|---|\n{rows}"));
    }
}

fn row(argument: &Arg) -> String {
    let mut meaning =
        in_markdown(&argument.get_help().map(ToString::to_string).unwrap_or_default());
    if !meaning.ends_with(['.', ':']) {
        meaning.push('.');
    }
    let words = argument.get_possible_values();
    let takes_one = argument.get_action().takes_values();
    if takes_one && !words.is_empty() {
        let words: Vec<String> = words
            .iter()
            .filter(|word| !word.is_hide_set())
            .map(|word| match word.get_help() {
                Some(help) => format!("`{}` ({})", word.get_name(), in_markdown(&help.to_string())),
                None => format!("`{}`", word.get_name()),
            })
            .collect();
        meaning.push_str(&format!(" One of {}.", words.join(", ")));
    }
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_one && !defaults.is_empty() {
        meaning.push_str(&format!(" Default `{}`.", defaults.join(" ")));
    }
    format!("| `{}` | {meaning} |\n", signature(argument))
}

/// As it is typed: `-d, --dir DIR`, or `FILE...`.
fn signature(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let mut value: String = names.iter().map(|name| format!(" {name}")).collect();
    let many =
        argument.get_num_args().is_some_and(|number| number.max_values() > names.len().max(1));
    if many {
        value += "...";
    }
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let flags: Vec<String> = short.into_iter().chain(long).collect();
    let takes_one = argument.get_action().takes_values();
    match (flags.is_empty(), takes_one) {
        (true, _) => value.trim().to_owned(),
        (false, true) => format!("{}{value}", flags.join(", ")),
        (false, false) => flags.join(", "),
    }
    .replace('|', "\\|")
}

/// What would mean something to Markdown, outside of `code`, is written as it is.
fn in_markdown(text: &str) -> String {
    let mut is_code = false;
    let mut written = String::new();
    for c in text.trim_end_matches('.').chars() {
        is_code ^= c == '`';
        match c {
            '\n' => written.push(' '),
            '|' => written.push_str("\\|"),
            '<' if !is_code => written.push_str("&lt;"),
            '*' | '_' if !is_code => {
                written.push('\\');
                written.push(c);
            }
            c => written.push(c),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CHANDLER_WRITE_BOOK=1 cargo test -p chandler-cli --lib reference` writes it anew.
    #[test]
    fn the_books_page_is_what_is_printed() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/commands.md");
        let page = markdown();
        if std::env::var_os("CHANDLER_WRITE_BOOK").is_some() {
            chandler_durable::write(&path, page.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page);
        for part in ["## `chandler run`", "### `chandler data preview`", "| `--json` |"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains(crate::worker::SUBCOMMAND));
    }

    #[test]
    fn what_means_something_to_markdown_is_written_as_it_is() {
        assert_eq!(in_markdown("a_b | <c> `d_<e>`."), "a\\_b \\| &lt;c> `d_<e>`");
    }
}
