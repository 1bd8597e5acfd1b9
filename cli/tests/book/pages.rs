//! The pages, and what is in them.

use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

pub(crate) fn pages() -> Vec<(PathBuf, String)> {
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

/// A fenced block.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) language: String,
    /// Why a block of commands is not run.
    pub(crate) no_run: Option<String>,
    /// What a reader has done by then; it stands in a comment before the block.
    pub(crate) before: String,
    pub(crate) text: String,
}

impl Block {
    /// What is written after the fence.
    fn opened(info: &str, before: String) -> Self {
        let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
        let no_run = rest.strip_prefix("no_run: ").map(str::to_owned);
        assert!(rest.is_empty() || no_run.is_some(), "{info}: no_run wants a reason");
        Self { language: language.to_owned(), no_run, before, text: String::new() }
    }

    /// The commands that a terminal shows in it, without the prompt.
    pub(crate) fn shown_commands(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("$ ")).collect()
    }
}

/// The fenced blocks of a page.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open, mut before) = (vec![], None, String::new());
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some(Block::opened(info, std::mem::take(&mut before))),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {
                let comment = line.strip_prefix("<!-- before: ");
                if let Some(command) = comment.and_then(|rest| rest.strip_suffix(" -->")) {
                    before += &format!("{command}\n");
                }
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}
