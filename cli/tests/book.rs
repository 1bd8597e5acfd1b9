//! The book and the README hold true: links lead somewhere, commands are ones that the binary
//! takes, configuration is what it reads.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chandler_cli::commands::Cli;
use chandler_cli::config::{ConfigSources, EvalSetConfig, ResolvedConfig};
use clap::Parser;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn pages() -> Vec<(PathBuf, String)> {
    let root = root();
    let book = std::fs::read_dir(root.join("docs/src")).unwrap();
    let mut pages: Vec<PathBuf> = book
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    pages.sort();
    let read = |path: PathBuf| (path.clone(), std::fs::read_to_string(path).unwrap());
    pages.into_iter().map(read).collect()
}

/// Fenced blocks: language and text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = vec![];
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, block)), None) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// The text without its fenced blocks and code spans.
fn prose(text: &str) -> String {
    let mut within = false;
    let lines = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        within ^= fence;
        !fence && !within
    });
    let whole: String = lines.flat_map(|line| [line, "\n"]).collect();
    whole.split('`').step_by(2).collect()
}

/// Where the links of a page lead.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let mut links = vec![];
    for part in prose.split("](").skip(1) {
        links.extend(part.split(')').next().map(str::to_owned));
    }
    links
}

/// The anchor that mdBook gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    for (page, text) in pages() {
        for link in links(&text) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !part.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let anchors: BTreeSet<String> = headings.map(anchor).collect();
                assert!(anchors.contains(part), "{}: {link}, of {anchors:?}", page.display());
            }
        }
    }
}

#[test]
fn every_page_is_in_the_summary() {
    let root = root();
    let summary = std::fs::read_to_string(root.join("docs/src/SUMMARY.md")).unwrap();
    let listed: BTreeSet<String> = links(&summary).into_iter().collect();
    for (page, _) in pages() {
        if page.parent().unwrap().ends_with("docs/src") && !page.ends_with("SUMMARY.md") {
            let name = page.file_name().unwrap().to_str().unwrap();
            assert!(listed.contains(name), "{name} is in no table of contents");
        }
    }
}

/// The commands of a block, one a line, without prompts, comments and what follows a pipe.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let simple = joined.lines().flat_map(|line| line.split(" && "));
    simple
        .filter_map(|line| {
            let line = line.trim().trim_start_matches("$ ");
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
        for (language, block) in blocks(&text) {
            // What a terminal shows has a prompt before the command.
            let block = match language.as_str() {
                "sh" | "bash" | "console" => block,
                "text" => {
                    let shown = block.lines().filter(|line| line.starts_with("$ "));
                    shown.flat_map(|line| [line, "\n"]).collect()
                }
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

#[test]
fn every_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (page, text) in pages() {
        for (language, block) in blocks(&text) {
            if language != "toml" || block.contains("[Unit]") || block.contains("[dependencies]") {
                continue;
            }
            let file = folder.path().join("chandler.toml");
            chandler_durable::write(&file, block.as_bytes()).unwrap();
            let is_section = block.lines().any(|line| {
                let name = line.trim().trim_matches(['[', ']']).split('.').next().unwrap_or("");
                line.starts_with('[')
                    && chandler_cli::config::SECTIONS.iter().any(|s| s.path == name)
            });
            let read = if is_section {
                let sources = ConfigSources { file: Some(file), ..ConfigSources::default() };
                ResolvedConfig::load(&sources).map(drop)
            } else {
                EvalSetConfig::read(&file, &chandler_cli::config::EvalConfig::default()).map(drop)
            };
            assert!(read.is_ok(), "{}:\n{block}\n{}", page.display(), read.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} blocks were found");
}
