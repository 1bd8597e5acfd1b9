//! Commands are ones that the binary takes.

use chandler_cli::commands::Cli;
use clap::{CommandFactory, Parser};

use crate::pages::{blocks, pages};

/// The commands of a block, one a line, without prompts, comments and what follows a pipe.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let simple = joined.lines().flat_map(|line| line.split(" && "));
    simple
        .filter_map(|line| {
            let line = line.trim();
            let words = words(line);
            let program = words.first()?;
            match program.as_str() {
                "chandler" => Some(words),
                "cargo" => {
                    let at = words.iter().position(|word| word == "--")?;
                    let runs = words.get(1).is_some_and(|word| word == "run");
                    let other = words.iter().any(|word| word == "-p" || word == "--example");
                    let rest = words[at + 1..].iter().cloned();
                    (runs && !other)
                        .then(|| std::iter::once("chandler".to_owned()).chain(rest).collect())
                }
                _ => None,
            }
        })
        .collect()
}

/// A line as a shell would split it, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut has) = (vec![], String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(mark), c) if c == mark => quote = None,
            (None, '"' | '\'') => (quote, has) = (Some(c), true),
            (None, '|' | '>' | '<' | '&') => break,
            (None, '#') if !has => break,
            (None, ' ') => {
                if has {
                    words.push(std::mem::take(&mut word));
                }
                has = false;
            }
            (_, c) => {
                word.push(c);
                has = true;
            }
        }
    }
    if has {
        words.push(word);
    }
    words
}

#[test]
fn every_command_is_one_that_the_binary_takes() {
    let mut seen = 0;
    for (page, text) in pages() {
        for block in blocks(&text) {
            // What a terminal shows has a prompt before the command.
            let block = match block.language.as_str() {
                "sh" => block.text,
                "text" => block.shown_commands().join("\n"),
                _ => continue,
            };
            for command in commands(&block) {
                if command.len() == 1
                    || command.iter().any(|word| word == "--help" || word == "--version")
                {
                    continue;
                }
                let parsed = Cli::try_parse_from(&command);
                assert!(parsed.is_ok(), "{}: {command:?}\n{}", page.display(), parsed.unwrap_err());
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen} commands were found");
}

/// Commands in the middle of a sentence, with words for their arguments.
fn mentioned(text: &str) -> Vec<String> {
    let mut within = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.starts_with("```");
        within ^= is_fence;
        !is_fence && !within
    });
    let whole: String = lines.flat_map(|line| [line, " "]).collect();
    let spans = whole.split('`').skip(1).step_by(2).map(str::to_owned);
    spans.filter(|span| span.starts_with("chandler ")).collect()
}

#[test]
fn commands_in_a_sentence_and_their_flags_exist() {
    let mut seen = 0;
    for (page, text) in pages() {
        for mention in mentioned(&text) {
            let mut command = Cli::command();
            command.build();
            let mut at = &command;
            for word in mention.split_whitespace().skip(1) {
                let flag = word.trim_matches(['[', ']']).strip_prefix("--");
                if let Some(flag) = flag {
                    let is_there = at.get_arguments().any(|known| known.get_long() == Some(flag));
                    assert!(is_there, "{}: {mention}: --{flag}", page.display());
                } else if let Some(next) = at.find_subcommand(word) {
                    at = next;
                } else if at.has_subcommands() {
                    let is_placeholder = word.to_uppercase() == word;
                    assert!(is_placeholder, "{}: {mention}: {word}", page.display());
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen} commands were found");
}
