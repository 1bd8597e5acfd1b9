//! The last line: a question, what came of the last key, or the keys. And the help.

use ratatui::Frame;
use ratatui::layout::{Constraint, Flex, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::words::cut;
use crate::screen::paint::{DIM, STRONG};
use crate::screen::ui::Ui;
use crate::visible::visible_line;

const KEYS: [(&str, &str); 10] = [
    ("q", "quit; the daemon goes on"),
    ("p", "pause, or resume"),
    ("e", "evaluate after this step"),
    ("s", "pass over the chosen job"),
    ("r", "queue the chosen job again"),
    ("+ -", "priority of the chosen job"),
    ("↑ ↓", "choose within the focus"),
    ("← →", "other samples"),
    ("Tab", "focus: jobs, samples, events"),
    ("?", "this help"),
];

pub(super) fn draw(frame: &mut Frame, area: Rect, ui: &Ui) {
    let width = usize::from(area.width);
    let line = if let Some(question) = &ui.question {
        let words = cut(&visible_line(&question.words), width.saturating_sub(6));
        Line::styled(format!("{words} y/n"), ui.paint.warning())
    } else if let Some(message) = &ui.message {
        let style = if message.is_error { ui.paint.bad() } else { ui.paint.good() };
        Line::styled(cut(&visible_line(&message.words), width), style)
    } else {
        let keys = "q quit  p pause  e evaluate  s skip  r retry  +/- priority  Tab focus  ? help";
        let few = "q quit  p pause  s skip  ? help";
        Line::styled(if width < keys.len() { few } else { keys }, DIM)
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// Every key, over everything else.
pub(super) fn help(frame: &mut Frame, area: Rect, ui: &Ui) {
    let [area] = Layout::horizontal([Constraint::Length(42)]).flex(Flex::Center).areas(area);
    let height = KEYS.len() as u16 + 2;
    let [area] = Layout::vertical([Constraint::Length(height)]).flex(Flex::Center).areas(area);
    let lines: Vec<Line> = KEYS
        .iter()
        .map(|(key, meaning)| {
            Line::from(vec![Span::styled(format!(" {key:<5}"), STRONG), Span::raw(*meaning)])
        })
        .collect();
    frame.render_widget(Clear, area);
    let block = Block::bordered().border_style(ui.paint.accent()).title(" keys ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
