//! What happened last.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::words::clock;
use crate::screen::paint::DIM;
use crate::screen::scene::Scene;
use crate::screen::ui::Ui;
use crate::store::Event;
use crate::visible::visible_line;

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let newest = scene.events.iter().skip(ui.event).take(usize::from(area.height));
    let lines: Vec<Line> = newest.map(|event| line(event, ui)).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn line(event: &Event, ui: &Ui) -> Line<'static> {
    let style = match event.kind.as_str() {
        "failed" | "trouble" => ui.paint.bad(),
        "attempt_failed" | "put_back" | "memory" | "restarted" | "refused" => ui.paint.warning(),
        _ => Style::new(),
    };
    let job = event.job_id.map_or_else(String::new, |id| format!("job {id}: "));
    Line::from(vec![
        Span::styled(format!("{}  ", clock(&event.at, &ui.zone, false)), DIM),
        Span::styled(visible_line(&format!("{job}{}", event.message)), style),
    ])
}
