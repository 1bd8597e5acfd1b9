//! Links lead somewhere, and every page is in the table of contents.

use std::collections::BTreeSet;

use crate::pages::{pages, root};

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
