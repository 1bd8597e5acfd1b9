//! The jobs: what runs, what waits, what was settled.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::widgets::{Paragraph, Row, Table};

use super::words::cut;
use crate::screen::paint::{CHOSEN, DIM, Paint};
use crate::screen::scene::Scene;
use crate::screen::ui::Ui;
use crate::store::{Job, JobState};
use crate::visible::visible_line;

/// Columns of everything but the name.
const BESIDE_NAME: usize = 1 + 5 + 8 + 7 + 4;

/// How many there are in each state, of the states that there are.
pub(super) fn title(scene: &Scene) -> String {
    let counts = scene.counts.iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = counts.map(|(state, count)| format!("{count} {state}")).collect();
    if words.is_empty() { "jobs".to_owned() } else { format!("jobs: {}", words.join(", ")) }
}

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    if let Some(trouble) = &scene.trouble {
        let words = Paragraph::new(visible_line(trouble)).style(ui.paint.bad());
        return frame.render_widget(words, area);
    }
    if scene.jobs.is_empty() {
        let words = "no jobs yet: put a .jsonl file into inbox/";
        return frame.render_widget(Paragraph::new(words).style(DIM), area);
    }
    let name = usize::from(area.width).saturating_sub(BESIDE_NAME);
    let selected = ui.selected_row(scene);
    let height = usize::from(area.height);
    let first = (selected + 1).saturating_sub(height);
    let rows = scene.jobs.iter().enumerate().skip(first).take(height).map(|(index, job)| {
        let style = if index == selected { CHOSEN } else { Style::new() };
        let mark = if index == selected { "▸" } else { " " };
        row(mark, job, name, ui.paint).style(style)
    });
    let widths = [
        Constraint::Length(1),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(name as u16),
    ];
    frame.render_widget(Table::new(rows, widths), area);
}

fn row<'a>(mark: &'a str, job: &Job, columns: usize, paint: Paint) -> Row<'a> {
    let style = match job.state {
        JobState::Running => paint.accent(),
        JobState::Failed => paint.bad(),
        JobState::Queued => Style::new(),
        JobState::Done | JobState::Skipped => DIM,
    };
    let error = job.report.as_ref().and_then(|report| report.pointer("/errors/0"));
    let error = error.and_then(serde_json::Value::as_str).filter(|_| job.state == JobState::Failed);
    let error = error.map_or_else(String::new, |error| format!(": {error}"));
    let name = visible_line(&format!("{}{error}", job.file_name));
    Row::new([
        mark.to_owned(),
        job.id.to_string(),
        job.state.to_string(),
        job.priority.to_string(),
        cut(&name, columns),
    ])
    .style(style)
}
