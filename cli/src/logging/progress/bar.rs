//! How the progress line looks, by what is going on.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::visible::visible_line;

/// Of a file's name, which may have 255 bytes.
const NAME_CHARS: usize = 48;

/// What goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Download,
    Upload,
    Reading,
    Loading,
    Training,
    Evaluating,
    Scoring,
    Saving,
}

impl Kind {
    fn template(self) -> &'static str {
        match self {
            Self::Training => "{prefix} {bar:24} {pos}/{len}  {wide_msg}",
            Self::Evaluating => "{prefix} {bar:24} {pos}/{len} answered  {wide_msg}",
            Self::Scoring => "{prefix} {bar:24} {pos}/{len} scored",
            Self::Reading => {
                "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}  {msg}  {eta} left"
            }
            Self::Download | Self::Upload | Self::Loading | Self::Saving => {
                "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}  {eta} left"
            }
        }
    }

    /// A line at the bottom of standard error, of `total` steps, answers or bytes.
    pub(super) fn bar(self, name: &str, total: u64) -> ProgressBar {
        let style = ProgressStyle::with_template(self.template())
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸ ");
        ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
            .with_style(style)
            .with_prefix(visible_name(name))
    }
}

/// A name as the line shows it: on one line, and not all of a long one.
fn visible_name(name: &str) -> String {
    let shown: String = name.chars().take(NAME_CHARS).collect();
    let more = if shown.len() < name.len() { "…" } else { "" };
    visible_line(&shown) + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_one() {
        for kind in [
            Kind::Download,
            Kind::Upload,
            Kind::Reading,
            Kind::Loading,
            Kind::Training,
            Kind::Evaluating,
            Kind::Scoring,
            Kind::Saving,
        ] {
            assert!(ProgressStyle::with_template(kind.template()).is_ok(), "{kind:?}");
        }
    }

    #[test]
    fn names_are_short_and_harmless() {
        assert_eq!(visible_name("a\u{1b}[2J"), "a\\u{1b}[2J");
        assert_eq!(visible_name(&"x".repeat(60)), "x".repeat(NAME_CHARS) + "…");
    }
}
