//! What is being worked on, and how far it has come.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::words::cut;
use crate::daemon::CurrentJob;
use crate::logging::{duration_in_words, grouped};
use crate::screen::paint::{DIM, STRONG};
use crate::screen::scene::{Daemon, Scene};
use crate::screen::ui::Ui;
use crate::store::JobState;
use crate::visible::visible_line;

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, ui: &Ui) {
    let width = usize::from(area.width);
    let lines = match scene.daemon.live().and_then(|live| live.current.as_ref()) {
        Some(current) => current_job(current, width, ui),
        None => vec![Line::styled(nothing(scene), DIM)],
    };
    frame.render_widget(Paragraph::new(lines), area);
}

fn nothing(scene: &Scene) -> String {
    let queued = scene.jobs.iter().filter(|job| job.state == JobState::Queued).count();
    let waiting = match queued {
        0 => "nothing waits in the queue".to_owned(),
        1 => "1 file waits in the queue".to_owned(),
        many => format!("{many} files wait in the queue"),
    };
    match &scene.daemon {
        Daemon::Running(_) => format!("works on nothing; {waiting}"),
        _ => waiting,
    }
}

fn current_job<'a>(current: &CurrentJob, width: usize, ui: &Ui) -> Vec<Line<'a>> {
    let paint = ui.paint;
    let name = visible_line(&current.file_name);
    let Some(progress) = &current.progress else {
        return vec![Line::from(vec![
            Span::styled(format!("job {} ", current.job_id), STRONG),
            Span::raw(cut(&name, width.saturating_sub(24))),
            Span::styled(format!("  {}", current.phase), paint.accent()),
        ])];
    };
    let (step, total) = (progress.step, progress.total_steps.max(1));
    let share = (step as f64 / total as f64).clamp(0.0, 1.0);
    let steps = format!("{}  {step}/{total}", current.phase);
    let title = vec![
        Span::styled(format!("job {} ", current.job_id), STRONG),
        Span::raw(cut(&name, width.saturating_sub(steps.len() + 12))),
        Span::styled(format!("  {steps}"), paint.accent()),
    ];
    let percent = format!(" {:3.0} %", share * 100.0);
    let eta = progress.eta_s.map_or_else(
        || "time left unknown".to_owned(),
        |seconds| format!("{} left", duration_in_words(seconds)),
    );
    let cells = width.saturating_sub(percent.len());
    let full = (share * cells as f64).round() as usize;
    let bar = vec![
        Span::styled("━".repeat(full), paint.accent()),
        Span::styled("─".repeat(cells - full), DIM),
        Span::raw(percent),
    ];
    let speed = progress
        .tokens_per_s
        .map_or_else(|| "speed unknown".to_owned(), |speed| format!("{} tokens/s", grouped(speed)));
    let figures = format!("loss {:.4}  {speed}  {eta}  lr {:.2e}", progress.loss, progress.lr);
    vec![Line::from(title), Line::from(bar), Line::raw(cut(&figures, width))]
}
