//! The plan as a picture: what each share of the device is filled with.

use std::fmt::Write;

use chandler_vram::{Bytes, Category, Plan};

use super::table::Table;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const BAR: f64 = 26.0;
const STEP: f64 = 40.0;

/// Colours that stay apart for colour-blind eyes (Okabe and Ito 2008), and grey.
fn colour(category: Category) -> &'static str {
    match category {
        Category::Weights => "#0072b2",
        Category::MasterWeights => "#56b4e9",
        Category::Gradients => "#d55e00",
        Category::OptimizerState => "#009e73",
        Category::Activations => "#e69f00",
        Category::KvCache => "#cc79a7",
        Category::Data => "#f0e442",
        Category::Workspace => "#999999",
    }
}

/// A bar for training and one for evaluation, with the device's end as a line, and the peaks of the
/// table below.
pub(super) fn draw(plan: &Plan, table: &Table) -> String {
    let peaks = table.rows.iter().filter_map(|row| row.best.as_ref()).map(|best| best.train_peak);
    let most = peaks.chain([plan.peak, plan.budget.unwrap_or(0)]).max().unwrap_or(1).max(1);
    let scale = (WIDTH - LEFT - 30.0) / most as f64;
    let mut y = 50.0;
    let mut body = String::new();
    let label = |body: &mut String, y: f64, text: &str| {
        let _ = write!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{text}</text>"#,
            LEFT - 8.0,
            y + 18.0
        );
    };
    for (name, phase, total) in
        [("training", "train", plan.train_peak), ("evaluation", "eval", plan.eval_peak)]
    {
        label(&mut body, y, name);
        let mut x = LEFT;
        for line in plan.lines.iter().filter(|line| line.phase == phase || line.phase == "always") {
            let width = line.bytes as f64 * scale;
            let _ = write!(
                body,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="{}"><title>{} {}</title></rect>"#,
                colour(line.category),
                line.category,
                Bytes(line.bytes)
            );
            x += width;
        }
        let _ =
            write!(body, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, x + 6.0, y + 18.0, Bytes(total));
        y += STEP;
    }
    for row in &table.rows {
        label(&mut body, y, &format!("{} {} %", row.preset, row.share));
        let frame = row.budget as f64 * scale;
        let _ = write!(
            body,
            r##"<rect x="{LEFT}" y="{y:.1}" width="{frame:.1}" height="{BAR}" fill="none" stroke="#888"/>"##
        );
        let text = row.best.as_ref().map_or("nothing fits".to_owned(), |best| {
            let width = best.train_peak as f64 * scale;
            let _ = write!(body, r##"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="{BAR}" fill="#dddddd"/>"##);
            let choice = best.choice;
            format!("{} x {}, {} blocks kept", choice.micro_batch_rows, choice.micro_batches, choice.kept_blocks)
        });
        let _ = write!(body, r#"<text x="{:.1}" y="{:.1}">{text}</text>"#, LEFT + 8.0, y + 18.0);
        y += STEP;
    }
    if let Some(budget) = plan.budget {
        let x = LEFT + budget as f64 * scale;
        let _ = write!(
            body,
            r##"<line x1="{x:.1}" y1="40" x2="{x:.1}" y2="{y:.1}" stroke="#cc0000" stroke-dasharray="4 3"/><text x="{x:.1}" y="34" text-anchor="end" fill="#cc0000">{}</text>"##,
            Bytes(budget)
        );
    }
    let mut x = LEFT;
    for line in plan
        .lines
        .iter()
        .filter(|line| line.bytes > 0 && line.phase != "eval" || line.category == Category::KvCache)
    {
        let name = line.category.name();
        let _ = write!(
            body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="12" height="12" fill="{}"/><text x="{:.1}" y="{:.1}">{name}</text>"#,
            colour(line.category),
            x + 16.0,
            y + 11.0
        );
        x += 30.0 + 7.2 * name.len() as f64;
    }
    let height = y + 30.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#ffffff"/><text x="{LEFT}" y="20" font-size="14">Memory by category</text>{body}</svg>
"##
    )
}
