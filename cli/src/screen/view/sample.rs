//! A question of the newest evaluation, and what the model answered.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::words::broken;
use crate::screen::paint::DIM;
use crate::screen::scene::{Sample, Scene};
use crate::screen::ui::Ui;
use crate::visible::visible_line;

/// Which sample of how many, of which set, and the figures of its evaluation.
pub(super) fn title(scene: &Scene, ui: &Ui) -> String {
    let Some(eval) = &scene.eval else { return "sample".to_owned() };
    let figures: Vec<String> =
        eval.figures.iter().map(|(name, value)| format!(", {name} {value:.3}")).collect();
    let all = eval.samples.len();
    let number = ui.sample.min(all.saturating_sub(1));
    let which = match eval.samples.get(number) {
        None => "no samples".to_owned(),
        // Of an evaluation before there were sets.
        Some(sample) if sample.set.is_empty() => format!("sample {}/{all}", number + 1),
        Some(sample) => format!("sample {}/{all} of {}", number + 1, visible_line(&sample.set)),
    };
    let other_run = scene.run.as_ref().is_some_and(|run| run.id != eval.run_id);
    let run = if other_run { format!(" of run {}", eval.run_id) } else { String::new() };
    format!("{which} at step {}{run}{}", eval.step, figures.concat())
}

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let samples = scene.eval.as_ref().map_or(&[][..], |eval| &eval.samples);
    let lines = match samples.get(ui.sample.min(samples.len().saturating_sub(1))) {
        Some(sample) => lines(sample, usize::from(area.width), usize::from(area.height), ui),
        None => vec![Line::styled("no answers yet", DIM)],
    };
    frame.render_widget(Paragraph::new(lines), area);
}

/// The end of the prompt, the answer, and what it should have been. The answer has the first claim
/// to the room.
fn lines<'a>(sample: &Sample, width: usize, height: usize, ui: &Ui) -> Vec<Line<'a>> {
    let paint = ui.paint;
    let (mark, style) = match sample.exact_match {
        Some(true) => ("= ", paint.good()),
        Some(false) => ("≠ ", paint.warning()),
        None => ("→ ", paint.accent()),
    };
    let marked = |mark: &str, text: &str| {
        let lines = broken(text, width.saturating_sub(2));
        let lines = if lines.is_empty() { vec!["(nothing)".to_owned()] } else { lines };
        let marked = lines.into_iter().enumerate();
        marked
            .map(|(turn, line)| format!("{}{line}", if turn == 0 { mark } else { "  " }))
            .collect::<Vec<_>>()
    };
    let mut answer = marked(mark, &sample.answer);
    answer.truncate(height.saturating_sub(1).max(1));
    let reference = sample.reference.as_deref().filter(|_| sample.exact_match == Some(false));
    let reference = reference.map_or_else(Vec::new, |text| marked("  should be: ", text));
    let room = height.saturating_sub(answer.len());
    let reference: Vec<String> = reference.into_iter().take(room.saturating_sub(1)).collect();
    let prompt = broken(&sample.prompt, width);
    let room = room.saturating_sub(reference.len());
    let tail = prompt.len().saturating_sub(room);
    let prompt = prompt.into_iter().skip(tail).map(|line| Line::styled(line, DIM));
    let answer = answer.into_iter().map(|line| Line::styled(line, style));
    let reference = reference.into_iter().map(|line| Line::styled(line, DIM));
    prompt.chain(answer).chain(reference).collect()
}
