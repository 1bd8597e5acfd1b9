//! Configuration is what the binary reads.

use chandler_cli::config::{ConfigSources, EvalSetConfig, ResolvedConfig};

use crate::pages::{Block, blocks, pages};

#[test]
fn every_configuration_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (page, text) in pages() {
        for Block { language, text: block, .. } in blocks(&text) {
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
