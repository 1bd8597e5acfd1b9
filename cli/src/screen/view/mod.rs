//! The picture: a pure function of the scene, of the person's choices and of the size.
//!
//! Text of strangers (names of files, prompts, answers, events) is made visible where it is put
//! into a line.

mod bottom;
mod charts;
mod events;
mod header;
mod job;
mod memory;
mod queue;
mod sample;
mod words;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::widgets::{Block, Borders};

use super::paint::{DIM, Paint, STRONG};
use super::scene::Scene;
use super::ui::{Focus, Ui};

/// From this size on every part has a frame of its own.
const WIDE: (u16, u16) = (100, 30);
/// From this size on there are two columns.
const USUAL: (u16, u16) = (70, 20);

/// Draws everything.
pub(crate) fn draw(frame: &mut Frame, scene: &Scene, ui: &Ui) {
    let area = frame.area();
    let fits = |(width, height): (u16, u16)| area.width >= width && area.height >= height;
    if fits(WIDE) {
        wide(frame, area, scene, ui);
    } else if fits(USUAL) {
        usual(frame, area, scene, ui);
    } else {
        small(frame, area, scene, ui);
    }
    if ui.help {
        bottom::help(frame, area, ui);
    }
}

fn wide(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(5),
        Constraint::Fill(4),
        Constraint::Fill(3),
        Constraint::Length(6),
        Constraint::Length(1),
    ]);
    let [top, job, charts, middle, events, bottom] = rows.areas(area);
    header::draw(frame, top, scene, ui);
    let inner = framed(frame, job, "now", ui.paint, false);
    job::draw(frame, inner, scene, ui);
    let [curves, memory] = columns(charts, 3, 2);
    charts::draw(frame, curves, scene, ui.paint);
    let inner = framed(frame, memory, "memory", ui.paint, false);
    memory::draw(frame, inner, scene, ui.paint);
    let [queue, sample] = columns(middle, 1, 1);
    part(frame, queue, scene, ui, Focus::Queue);
    part(frame, sample, scene, ui, Focus::Sample);
    part(frame, events, scene, ui, Focus::Events);
    bottom::draw(frame, bottom, ui);
}

fn usual(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(3),
        Constraint::Fill(1),
        Constraint::Length(3),
        Constraint::Fill(1),
        Constraint::Length(3),
        Constraint::Length(1),
    ]);
    let [top, job, charts, memory, middle, events, bottom] = rows.areas(area);
    header::draw(frame, top, scene, ui);
    job::draw(frame, job, scene, ui);
    charts::draw(frame, charts, scene, ui.paint);
    memory::draw(frame, memory, scene, ui.paint);
    let [queue, sample] = columns(middle, 1, 1);
    part(frame, queue, scene, ui, Focus::Queue);
    part(frame, sample, scene, ui, Focus::Sample);
    part(frame, events, scene, ui, Focus::Events);
    bottom::draw(frame, bottom, ui);
}

/// One of the parts at a time: the one with the focus.
fn small(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [top, job, loss, memory, part_area, bottom] = rows.areas(area);
    header::draw(frame, top, scene, ui);
    job::draw(frame, job, scene, ui);
    charts::draw(frame, loss, scene, ui.paint);
    memory::draw(frame, memory, scene, ui.paint);
    part(frame, part_area, scene, ui, ui.focus);
    bottom::draw(frame, bottom, ui);
}

/// A part that can have the focus.
fn part(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui, which: Focus) {
    let title = match which {
        Focus::Queue => queue::title(scene),
        Focus::Sample => sample::title(scene, ui),
        Focus::Events => "events".to_owned(),
    };
    let inner = framed(frame, area, &title, ui.paint, ui.focus == which);
    match which {
        Focus::Queue => queue::draw(frame, inner, scene, ui),
        Focus::Sample => sample::draw(frame, inner, scene, ui),
        Focus::Events => events::draw(frame, inner, scene, ui),
    }
}

/// Draws a title, and a frame where there is room for one; returns what is within.
fn framed(frame: &mut Frame, area: Rect, title: &str, paint: Paint, has_focus: bool) -> Rect {
    let borders = if area.height >= 5 && area.width >= 40 { Borders::ALL } else { Borders::TOP };
    let style = if has_focus { paint.accent().patch(STRONG) } else { DIM };
    let mark = if has_focus { "▸ " } else { "" };
    let block = Block::new().borders(borders).border_style(style).title(format!(" {mark}{title} "));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

fn columns(area: Rect, left: u16, right: u16) -> [Rect; 2] {
    Layout::horizontal([Constraint::Fill(left), Constraint::Fill(right)]).areas(area)
}

#[cfg(test)]
mod tests;
