//! The newest steps as curves: the loss large, gradient norm and learning rate small.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::symbols::Marker;
use ratatui::text::Span;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Paragraph, Sparkline};

use super::framed;
use crate::screen::paint::{DIM, Paint};
use crate::screen::scene::{Point, Scene};
use crate::store::RunState;

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, paint: Paint) {
    let points = scene.run.as_ref().map_or(&[][..], |run| &run.points);
    if area.height < 5 {
        return in_a_line(frame, area, points, paint);
    }
    let [left, right] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(area);
    let inner = framed(frame, left, &loss_title(scene), paint, false);
    loss(frame, inner, points, paint);
    let [upper, lower] = Layout::vertical([Constraint::Fill(1); 2]).areas(right);
    small(frame, upper, "grad norm", points, |point| point.grad_norm, paint);
    small(frame, lower, "lr", points, |point| point.lr, paint);
}

fn loss_title(scene: &Scene) -> String {
    let Some(run) = &scene.run else { return "loss".to_owned() };
    let job = run.job_id.map_or_else(String::new, |id| format!(" of job {id}"));
    let state = match run.state {
        RunState::Running => String::new(),
        state => format!(", {state}"),
    };
    let newest = run.points.last().map_or_else(String::new, |point| format!(" {:.4}", point.loss));
    format!("loss{newest}  run {}{job}{state}", run.id)
}

fn loss(frame: &mut Frame, area: Rect, points: &[Point], paint: Paint) {
    let curve: Vec<(f64, f64)> = points
        .iter()
        .filter(|point| point.loss.is_finite())
        .map(|point| (point.step as f64, point.loss))
        .collect();
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else {
        return frame.render_widget(Paragraph::new("no steps yet").style(DIM), area);
    };
    let steps = [first.0, last.0.max(first.0 + 1.0)];
    let low = curve.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = curve.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let losses = [low, if high > low { high } else { low + 1.0 }];
    let label = |value: f64, places: usize| Span::styled(format!("{value:.places$}"), DIM);
    let data = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(paint.accent())
        .data(&curve);
    let chart = Chart::new(vec![data])
        .x_axis(Axis::default().bounds(steps).labels(steps.map(|step| label(step, 0))))
        .y_axis(Axis::default().bounds(losses).labels(losses.map(|loss| label(loss, 2))));
    frame.render_widget(chart, area);
}

fn small(
    frame: &mut Frame,
    area: Rect,
    name: &str,
    points: &[Point],
    value: fn(&Point) -> f64,
    paint: Paint,
) {
    let newest = points.last().map_or_else(String::new, |point| match value(point) {
        value if value.abs() < 0.01 => format!(" {value:.2e}"),
        value => format!(" {value:.3}"),
    });
    let inner = framed(frame, area, &format!("{name}{newest}"), paint, false);
    frame.render_widget(sparkline(points, value, inner, paint), inner);
}

/// Where there is one line, the loss alone.
fn in_a_line(frame: &mut Frame, area: Rect, points: &[Point], paint: Paint) {
    let [name, curve] =
        Layout::horizontal([Constraint::Length(5), Constraint::Fill(1)]).areas(area);
    frame.render_widget(Paragraph::new("loss").style(DIM), name);
    frame.render_widget(sparkline(points, |point| point.loss, curve, paint), curve);
}

/// The newest steps, one a column, or the mean of several where there are more than columns.
fn sparkline(
    points: &[Point],
    value: fn(&Point) -> f64,
    area: Rect,
    paint: Paint,
) -> Sparkline<'static> {
    const FINE: f64 = 1000.0;
    let values: Vec<f64> = points.iter().map(value).filter(|value| value.is_finite()).collect();
    let together = values.len().div_ceil(usize::from(area.width).max(1)).max(1);
    let means: Vec<f64> =
        values.chunks(together).map(|some| some.iter().sum::<f64>() / some.len() as f64).collect();
    let high = means.iter().copied().fold(0.0, f64::max);
    let scale = if high > 0.0 { FINE / high } else { 0.0 };
    let scaled: Vec<u64> = means.iter().map(|mean| (mean * scale).max(0.0) as u64).collect();
    Sparkline::default().data(scaled).max(FINE as u64).style(paint.accent())
}
