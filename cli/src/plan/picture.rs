//! The plan as a picture: what each share of the device is filled with.

use chandler_vram::{Bytes, Category, Plan};

use super::table::{Row, Table};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 26.0;
const STEP: f64 = 40.0;

/// What the picture is drawn on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Paper {
    /// For a document.
    #[default]
    White,
    /// The ground of a dark page, which shows through.
    Dark,
}

impl Paper {
    fn ground(self) -> &'static str {
        match self {
            Self::White => "#ffffff",
            Self::Dark => "none",
        }
    }

    /// Words, and what is black on white.
    fn ink(self) -> &'static str {
        match self {
            Self::White => "#000000",
            Self::Dark => "#e4e6e9",
        }
    }

    /// What is filled without being of a category.
    fn shade(self) -> &'static str {
        match self {
            Self::White => "#dddddd",
            Self::Dark => "#454b53",
        }
    }
}

/// Colours that stay apart for colour-blind eyes (Okabe and Ito 2008), and grey.
fn colour(category: Category, paper: Paper) -> &'static str {
    match category {
        Category::Weights => "#0072b2",
        Category::MasterWeights => "#56b4e9",
        Category::Gradients => "#d55e00",
        Category::OptimizerState => "#009e73",
        Category::Activations => "#e69f00",
        Category::KvCache => "#cc79a7",
        Category::Data => "#f0e442",
        Category::Workspace => "#999999",
        Category::Checkpoint => paper.ink(),
        Category::Context => "#6b7d8f",
    }
}

/// A bar for training and one for evaluation, with the device's end as a line, and the peaks of the
/// table below.
pub(crate) fn draw(plan: &Plan, table: &Table, paper: Paper) -> String {
    let peaks = table.rows.iter().filter_map(|row| row.best.as_ref()).map(|best| best.train_peak);
    let most = peaks.chain([plan.peak, plan.budget.unwrap_or(0)]).max().unwrap_or(1).max(1);
    let scale = (WIDTH - LEFT - 90.0) / most as f64;
    let mut body = text(LEFT, 6.0, "start", "Memory by category");
    let mut y = 50.0;
    for (name, phase, total) in
        [("training", "train", plan.train_peak), ("evaluation", "eval", plan.eval_peak)]
    {
        body += &phase_bar(plan, [name, phase], total, [y, scale], paper);
        y += STEP;
    }
    for row in &table.rows {
        body += &share_bar(row, y, scale, paper);
        y += STEP;
    }
    if let Some(budget) = plan.budget {
        body += &end_of_device(budget, y, scale);
    }
    body += &legend(plan, y, paper);
    let height = y + 30.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\" \
         fill=\"{}\">\n<rect width=\"100%\" height=\"100%\" fill=\"{}\"/>\n{body}</svg>\n",
        paper.ink(),
        paper.ground()
    )
}

/// Text beside a bar that begins at `y`.
fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let y = y + 18.0;
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn bar([x, y, width, height]: [f64; 4], paint: &str, title: &str) -> String {
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" {paint}>\
         <title>{title}</title></rect>\n"
    )
}

fn filled(colour: &str) -> String {
    format!("fill=\"{colour}\"")
}

/// What a phase holds, category by category.
fn phase_bar(
    plan: &Plan,
    [name, phase]: [&str; 2],
    total: u64,
    [y, scale]: [f64; 2],
    paper: Paper,
) -> String {
    let mut all = text(LEFT - 8.0, y, "end", name);
    let mut x = LEFT;
    for line in plan.lines.iter().filter(|line| line.phase == phase || line.phase == "always") {
        let width = line.bytes as f64 * scale;
        let title = format!("{} {}", line.category, Bytes(line.bytes));
        all += &bar([x, y, width, BAR], &filled(colour(line.category, paper)), &title);
        x += width;
    }
    // Beyond the line of the device's end, where the words would lie on it.
    let end = plan.budget.map_or(0.0, |budget| LEFT + budget as f64 * scale);
    let after = if (x..x + 70.0).contains(&end) { end } else { x };
    all + &text(after + 6.0, y, "start", &Bytes(total).to_string())
}

/// How much of a share its best batch fills.
fn share_bar(row: &Row, y: f64, scale: f64, paper: Paper) -> String {
    let name = format!("{} {} %", row.preset, row.share);
    let frame = [LEFT, y, row.budget as f64 * scale, BAR];
    let budget = Bytes(row.budget).to_string();
    let mut all = text(LEFT - 8.0, y, "end", &name);
    let words = match &row.best {
        None => "nothing fits".to_owned(),
        Some(best) => {
            let peak = [LEFT, y, best.train_peak as f64 * scale, BAR];
            all += &bar(peak, &filled(paper.shade()), &Bytes(best.train_peak).to_string());
            let choice = best.choice;
            let (rows, times) = (choice.micro_batch_rows, choice.micro_batches);
            format!("{rows} x {times}, {} blocks kept", choice.kept_blocks)
        }
    };
    all += &bar(frame, "fill=\"none\" stroke=\"#888888\"", &budget);
    all + &text(LEFT + 8.0, y, "start", &words)
}

fn end_of_device(budget: u64, bottom: f64, scale: f64) -> String {
    let x = LEFT + budget as f64 * scale;
    let line = format!(
        "<line x1=\"{x:.1}\" y1=\"44\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#cc0000\" \
         stroke-dasharray=\"4 3\"/>\n"
    );
    line + &text(x, 22.0, "end", &Bytes(budget).to_string())
}

/// Each category once.
fn legend(plan: &Plan, y: f64, paper: Paper) -> String {
    let mut x = 20.0;
    let mut all = String::new();
    let has = |category: Category| {
        plan.lines.iter().any(|line| line.category == category && line.bytes > 0)
    };
    for category in Category::ALL.into_iter().filter(|category| has(*category)) {
        all += &bar([x, y, 12.0, 12.0], &filled(colour(category, paper)), category.name());
        all += &text(x + 16.0, y - 7.0, "start", category.name());
        x += 30.0 + 7.2 * category.name().len() as f64;
    }
    all
}
