//! Whose daemon this is, and how it stands.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::words::{clock, cut};
use crate::control::LiveStatus;
use crate::screen::paint::{DIM, STRONG};
use crate::screen::scene::{Daemon, Scene};
use crate::screen::ui::Ui;
use crate::visible::visible_line;

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let width = usize::from(area.width);
    let dir = visible_line(&scene.state_dir);
    let state = state(scene, ui);
    let lines = if area.height < 2 {
        let state_width: usize = state.iter().map(Span::width).sum();
        let mut spans = state;
        spans.push(Span::styled(cut(&format!("  {dir}"), width.saturating_sub(state_width)), DIM));
        vec![Line::from(spans)]
    } else {
        let model = scene.base_model.as_deref().map_or_else(String::new, visible_line);
        let mut top = vec![Span::styled("chandler  ", STRONG), Span::raw(dir)];
        if !model.is_empty() {
            top.push(Span::styled(format!("  {model}"), DIM));
        }
        let mut spans = state;
        spans.extend(rest(scene, ui));
        vec![Line::from(top), Line::from(spans)]
    };
    frame.render_widget(Paragraph::new(lines), area);
}

/// In a word or two: running, paused, not running.
fn state(scene: &Scene, ui: &Ui) -> Vec<Span<'static>> {
    let paint = ui.paint;
    let mut spans = vec![match &scene.daemon {
        Daemon::NotRunning => Span::styled("not running", paint.warning()),
        Daemon::Unclear(_) => Span::styled("does not answer", paint.bad()),
        Daemon::Running(live) if live.waiting.is_some() => Span::styled("waiting", paint.bad()),
        Daemon::Running(_) => Span::styled("running", paint.good()),
    }];
    if scene.paused {
        spans.push(Span::styled(", paused", paint.warning()));
    }
    if scene.daemon.live().is_some_and(|live| live.stopping) {
        spans.push(Span::styled(", ending", paint.warning()));
    }
    if let Some(seconds) = ui.silent_s {
        spans.push(Span::styled(format!(", nothing new for {seconds} s"), paint.bad()));
    }
    spans
}

fn rest(scene: &Scene, ui: &Ui) -> Vec<Span<'static>> {
    match &scene.daemon {
        Daemon::NotRunning => {
            let words =
                format!("  `chandler run --dir {}` starts one", visible_line(&scene.state_dir));
            vec![Span::styled(words, DIM)]
        }
        Daemon::Unclear(why) => vec![Span::raw(format!("  {}", visible_line(why)))],
        Daemon::Running(live) => about(live, ui),
    }
}

fn about(live: &LiveStatus, ui: &Ui) -> Vec<Span<'static>> {
    let since = clock(&live.started_at, &ui.zone, true);
    let page =
        live.http.as_deref().map_or_else(String::new, |url| format!("  {}", visible_line(url)));
    let words = format!("  pid {}  since {since}{page}", live.pid);
    let mut spans = vec![Span::styled(words, DIM)];
    if let Some(waiting) = &live.waiting {
        // What it waits for is worth more than since when it runs.
        spans.insert(0, Span::styled(format!(" for: {}", visible_line(waiting)), ui.paint.bad()));
    }
    spans
}
