//! What memory is used for: the ledger as a bar, the process, the plan, the GPUs.

use chandler_vram::{Bytes, Category, GpuReading};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::words::cut;
use crate::daemon::LiveMemory;
use crate::screen::paint::{DIM, Paint};
use crate::screen::scene::{Scene, ShownPlan};
use crate::visible::visible_line;

pub(super) fn draw(frame: &mut Frame, area: Rect, scene: &Scene, paint: Paint) {
    let plan = scene.run.as_ref().and_then(|run| run.plan);
    let width = usize::from(area.width);
    let lines = match scene.daemon.live() {
        None => vec![Line::styled("memory is told by a running daemon", DIM)],
        Some(live) if area.height <= 1 => vec![Line::raw(cut(&process(&live.memory), width))],
        Some(live) => lines(&live.memory, plan, width, usize::from(area.height), paint),
    };
    frame.render_widget(Paragraph::new(lines), area);
}

fn lines(
    memory: &LiveMemory,
    plan: Option<ShownPlan>,
    width: usize,
    height: usize,
    paint: Paint,
) -> Vec<Line<'static>> {
    let mut lines = vec![bar(memory, plan, width, paint)];
    let mut legend = legend(memory, paint);
    if height < 6 {
        let spans = legend.drain(..).flat_map(|line| line.spans);
        lines.push(spans.flat_map(|span| [span, Span::raw("  ")]).collect());
    }
    lines.extend(legend);
    if width < 80 && height >= 6 {
        lines.extend([heap(memory), machine(memory)].map(|line| Line::raw(cut(&line, width))));
    } else {
        lines.push(Line::raw(cut(&process(memory), width)));
    }
    lines.extend(plan.map(|plan| Line::raw(cut(&planned(plan), width))));
    for gpu in memory.gpus.iter().flatten() {
        lines.extend(of_gpu(gpu).into_iter().map(|line| Line::raw(cut(&line, width))));
    }
    lines
}

/// Every category as long as its part of what there is, as its letter.
fn bar(memory: &LiveMemory, plan: Option<ShownPlan>, width: usize, paint: Paint) -> Line<'static> {
    let whole = memory.limit.or_else(|| plan.and_then(|plan| plan.budget));
    let whole = whole.unwrap_or(0).max(memory.ledger.total).max(1);
    let mut spans = Vec::new();
    let (mut bytes, mut cells) = (0, 0);
    for line in &memory.ledger.categories {
        bytes += line.bytes;
        let end = (bytes as f64 / whole as f64 * width as f64).round() as usize;
        let text = letter(line.category).repeat(end.saturating_sub(cells));
        spans.push(Span::styled(text, paint.category(line.category)));
        cells = end.max(cells);
    }
    spans.push(Span::styled("·".repeat(width.saturating_sub(cells)), DIM));
    Line::from(spans)
}

fn legend(memory: &LiveMemory, paint: Paint) -> Vec<Line<'static>> {
    let held = memory.ledger.categories.iter().filter(|line| line.bytes > 0);
    held.map(|line| {
        let words = format!("{} {} {}", letter(line.category), line.category, Bytes(line.bytes));
        Line::from(Span::styled(words, paint.category(line.category)))
    })
    .collect()
}

fn letter(category: Category) -> &'static str {
    match category {
        Category::Weights => "W",
        Category::MasterWeights => "M",
        Category::Gradients => "G",
        Category::OptimizerState => "O",
        Category::Activations => "A",
        Category::KvCache => "K",
        Category::Data => "D",
        Category::Workspace => "S",
        Category::Checkpoint => "C",
        Category::Context => "X",
    }
}

fn process(memory: &LiveMemory) -> String {
    format!("{}; {}", heap(memory), machine(memory))
}

fn heap(memory: &LiveMemory) -> String {
    let limit = memory.limit.map_or_else(String::new, |limit| format!(" of {}", Bytes(limit)));
    format!("heap {}{limit}, peak {}", size(memory.heap), size(memory.heap_peak))
}

fn machine(memory: &LiveMemory) -> String {
    format!("resident {}; {} free", size(memory.host.rss), size(memory.host.available))
}

fn planned(plan: ShownPlan) -> String {
    let budget = plan.budget.map_or_else(String::new, |bytes| format!(" of {}", Bytes(bytes)));
    format!("planned {}{budget}", Bytes(plan.peak))
}

fn of_gpu(gpu: &GpuReading) -> Vec<String> {
    let name = gpu.name.as_deref().map_or_else(|| "unknown".to_owned(), visible_line);
    let (used, total) = (size(gpu.used), size(gpu.total));
    let mut lines = vec![format!("gpu {} {name}, {used} of {total} in use", gpu.index)];
    for process in gpu.processes.iter().flatten() {
        let name = process.name.as_deref().map_or_else(|| "unknown".to_owned(), visible_line);
        lines.push(format!("  {} by {name} (pid {})", size(process.used), process.pid));
    }
    lines
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}
