//! Styles by what they mean. Without colours, weight and reversal have to do.

use chandler_vram::Category;
use ratatui::style::{Color, Modifier, Style};

/// What everything else is about.
pub(crate) const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

/// What can be passed over.
pub(crate) const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// The line that keys act on.
pub(crate) const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// How things look on this terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    pub(crate) colour: bool,
}

impl Paint {
    fn coloured(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// It goes well.
    pub(crate) fn good(self) -> Style {
        self.coloured(Color::Green)
    }

    /// It waits, or will not go on by itself.
    pub(crate) fn warning(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// It went wrong.
    pub(crate) fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// Curves, bars and frames that have the focus.
    pub(crate) fn accent(self) -> Style {
        self.coloured(Color::Cyan)
    }

    /// A part of the memory bar, whose letter says the same.
    pub(crate) fn category(self, category: Category) -> Style {
        self.coloured(match category {
            Category::Weights => Color::Cyan,
            Category::MasterWeights => Color::Blue,
            Category::Gradients => Color::Red,
            Category::OptimizerState => Color::Yellow,
            Category::Activations => Color::Green,
            Category::KvCache => Color::Magenta,
            Category::Data => Color::LightBlue,
            Category::Workspace => Color::LightYellow,
            Category::Checkpoint => Color::LightMagenta,
            Category::Context => Color::DarkGray,
        })
    }
}
