//! A curve in the terminal.

const WIDTH: usize = 60;
const HEIGHT: usize = 8;
/// An empty cell, and cells filled from the bottom by eighths.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `values` from left to right, each column the mean of its share, from 0 to the largest.
pub(super) fn curve(values: &[f64]) -> String {
    let columns = WIDTH.min(values.len());
    let mean = |column: usize| {
        let share = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
        share.iter().sum::<f64>() / share.len().max(1) as f64
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let top = means.iter().fold(0.0, |top: f64, value| top.max(*value)).max(f64::MIN_POSITIVE);
    let eighths: Vec<usize> =
        means.iter().map(|value| (value / top * (HEIGHT * 8) as f64).round() as usize).collect();
    let mut text = String::new();
    for row in (0..HEIGHT).rev() {
        let label = match row {
            0 => "0.00".to_owned(),
            row if row == HEIGHT - 1 => format!("{top:.2}"),
            _ => String::new(),
        };
        let line: String =
            eighths.iter().map(|eighth| EIGHTHS[eighth.saturating_sub(row * 8).min(8)]).collect();
        text += &format!("{label:>6} │{}\n", line.trim_end());
    }
    let last = format!("step {}", values.len());
    let gap = columns.saturating_sub(1 + last.chars().count());
    text + &format!("       └{}\n        1{}{last}\n", "─".repeat(columns), " ".repeat(gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_line_falls() {
        let values: Vec<f64> = (0..120).map(|i| 4.0 - f64::from(i) / 30.0).collect();
        let plot = curve(&values);
        let lines: Vec<&str> = plot.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 2);
        assert!(lines[0].starts_with("  3.98 │█"), "{plot}");
        assert!(lines[0].chars().count() < lines[HEIGHT - 1].chars().count());
        assert!(lines[HEIGHT + 1].ends_with("step 120"), "{plot}");
    }
}
