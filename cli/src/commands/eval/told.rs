//! What an evaluation comes to, for people and for programs.

use serde_json::{Value, json};

use super::asked::Examined;
use crate::failure::Failure;
use crate::output;
use crate::store::{EvalRow, ScoreRow};

pub(super) fn tell(
    examined: &Examined,
    other: Option<&Examined>,
    as_json: bool,
) -> Result<(), Failure> {
    if as_json {
        let mut all = as_object(examined);
        if let Some(other) = other {
            all["against"] = as_object(other);
        }
        return output::print_json(&all);
    }
    let row = &examined.evaluated.row;
    output::print(&output::table(&figures(row)))?;
    if let Some(other) = other {
        output::print(&format!("against {}\n", other.model))?;
    }
    let scores: Vec<Vec<String>> =
        row.scores.iter().filter(|score| is_told(score, other.is_some())).map(line).collect();
    output::print(&output::table(&scores))?;
    for sample in &examined.evaluated.samples {
        output::print(&format!("---\n{}\n=> {}\n", sample.prompt, sample.text))?;
    }
    Ok(())
}

fn as_object(examined: &Examined) -> Value {
    let row = &examined.evaluated.row;
    json!({
        "model": examined.model,
        "loss": row.loss,
        "perplexity": row.perplexity,
        "token_accuracy": row.token_accuracy,
        "exact_match": row.exact_match,
        "scores": row.scores,
        "rows": examined.rows,
        "samples": examined.evaluated.samples,
    })
}

/// What is known of the figures of records that are no eval set, one a line.
fn figures(row: &EvalRow) -> Vec<Vec<String>> {
    let named = [
        ("loss", row.loss),
        ("perplexity", row.perplexity),
        ("token accuracy", row.token_accuracy),
        ("exact match", row.exact_match),
    ];
    let line = |(name, value): (&str, Option<f64>)| {
        let metric = name.replace(' ', "_");
        let score = row.scores.iter().find(|score| score.is_own() && score.metric == metric);
        let ends = score.map(ends).unwrap_or_default();
        Some(vec![name.to_owned(), format!("{:.4}", value?), ends])
    };
    named.into_iter().filter_map(line).collect()
}

/// Whether the figures do not say it already.
fn is_told(score: &ScoreRow, is_compared: bool) -> bool {
    is_compared || !score.is_figure()
}

/// Its 95 % interval, where it has one.
fn ends(score: &ScoreRow) -> String {
    match (score.low, score.high) {
        (Some(low), Some(high)) => format!("[{low:.4}, {high:.4}]"),
        _ => String::new(),
    }
}

fn line(score: &ScoreRow) -> Vec<String> {
    let mut cells = vec![
        format!("{} {}", score.set, score.metric.replace('_', " ")),
        format!("{:.4}", score.value),
        ends(score),
    ];
    if let Some(base) = score.base {
        let gain = score.gain.unwrap_or(score.value - base);
        let ends = match (score.gain_low, score.gain_high) {
            (Some(low), Some(high)) => format!(" [{low:+.4}, {high:+.4}]"),
            _ => String::new(),
        };
        cells.extend([format!("against {base:.4}"), format!("{gain:+.4}{ends}")]);
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(set: &str, metric: &str, value: f64) -> ScoreRow {
        let (set, metric) = (set.to_owned(), metric.to_owned());
        ScoreRow { set, metric, value, ..ScoreRow::default() }
    }

    #[test]
    fn figures_that_are_not_known_are_left_out_and_intervals_stand_beside_them() {
        let loss = ScoreRow { low: Some(1.25), high: Some(1.75), ..score("held-out", "loss", 1.5) };
        let row = EvalRow {
            loss: Some(1.5),
            exact_match: Some(0.25),
            scores: vec![loss],
            ..EvalRow::default()
        };
        let expected = "loss         1.5000  [1.2500, 1.7500]\nexact match  0.2500\n";
        assert_eq!(output::table(&figures(&row)), expected);
    }

    #[test]
    fn a_score_stands_beside_another_models() {
        let mut sums = score("sums", "exact_match", 0.75);
        assert_eq!(line(&sums), ["sums exact match", "0.7500", ""]);
        sums.base = Some(0.5);
        assert_eq!(line(&sums)[3..], ["against 0.5000", "+0.2500"]);
        (sums.gain, sums.gain_low, sums.gain_high) = (Some(0.25), Some(-0.1), Some(0.6));
        assert_eq!(line(&sums)[4], "+0.2500 [-0.1000, +0.6000]");
    }
}
