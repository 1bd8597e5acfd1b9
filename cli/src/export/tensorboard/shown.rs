//! What of a run is shown, and under which tag.

use super::event::Shown;
use crate::store::{EvalRow, EvalSample, StepRow};

/// The curves of a step; what is unknown has no point. Memory is in bytes.
pub(super) fn of_step(row: &StepRow) -> Vec<(String, Shown)> {
    let memory = row.memory.iter().map(|(category, bytes)| (category.name(), *bytes));
    let peak = row.peak_bytes.map(|bytes| ("peak", bytes));
    let memory = peak.into_iter().chain(memory);
    let memory = memory.map(|(name, bytes)| scalar(format!("memory/{name}"), bytes as f64));
    let layers = row.layers.iter().flat_map(|one| {
        let curve =
            |name: &str, value: Option<f64>| Some(scalar(format!("{name}/{}", one.layer), value?));
        let grad_norm = curve("layer_grad_norm", Some(one.grad_norm));
        [grad_norm, curve("layer_update_ratio", one.update_ratio())]
    });
    [
        ("train/loss", Some(row.loss)),
        ("train/learning_rate", Some(row.lr)),
        ("train/grad_norm", Some(row.grad_norm)),
        ("train/num_tokens", Some(row.num_tokens as f64)),
        ("train/mean_token_accuracy", row.mean_token_accuracy),
        ("train/tokens_per_s", row.tokens_per_s),
    ]
    .into_iter()
    .filter_map(|(tag, value)| Some(scalar(tag.to_owned(), value?)))
    .chain(memory)
    .chain(layers.flatten())
    .collect()
}

/// The curves of an evaluation, those of each set beside the job's own, and its samples as texts,
/// each under its question: a set that is asked only now and then leaves the others' tags alone.
pub(super) fn of_evaluation(row: &EvalRow, samples: &[EvalSample]) -> Vec<(String, Shown)> {
    let curves = [
        ("eval/loss", row.loss),
        ("eval/perplexity", row.perplexity),
        ("eval/token_accuracy", row.token_accuracy),
        ("eval/exact_match", row.exact_match),
    ];
    let curves = curves.into_iter().filter_map(|(tag, value)| Some(scalar(tag.to_owned(), value?)));
    let scores = row.scores.iter();
    let scores =
        scores.map(|score| scalar(format!("eval/{}/{}", score.set, score.metric), score.value));
    let texts = samples.iter().map(|sample| {
        let EvalSample { set, position, attempt, .. } = sample;
        (format!("samples/{set}/{position}/{attempt}"), Shown::Text(as_markdown(sample)))
    });
    curves.chain(scores).chain(texts).collect()
}

fn scalar(tag: String, value: f64) -> (String, Shown) {
    (tag, Shown::Scalar(value))
}

/// Each part as an indented block, in which Markdown changes nothing.
fn as_markdown(sample: &EvalSample) -> String {
    let part = |name: &str, text: &str| {
        let lines: String = text.lines().map(|line| format!("    {line}\n")).collect();
        format!("**{name}**\n\n{lines}\n")
    };
    let mut text = part("prompt", &sample.prompt);
    if let Some(reference) = &sample.reference {
        text += &part("reference", reference);
    }
    text + &part("answer", &sample.text)
}

#[cfg(test)]
mod tests {
    use chandler_trainer::LayerNorms;

    use super::*;
    use crate::store::ScoreRow;

    #[test]
    fn a_layer_has_its_curves() {
        let layer = |update_norm| LayerNorms {
            layer: "norm".into(),
            grad_norm: 2.0,
            update_norm,
            weight_norm: Some(4.0),
        };
        let told = |update_norm| {
            let row = StepRow { layers: vec![layer(update_norm)], ..StepRow::default() };
            let all = of_step(&row).into_iter();
            all.filter(|(tag, _)| tag.starts_with("layer_")).collect::<Vec<_>>()
        };
        let grad_norm = ("layer_grad_norm/norm".to_owned(), Shown::Scalar(2.0));
        let ratio = ("layer_update_ratio/norm".to_owned(), Shown::Scalar(0.25));
        assert_eq!(told(Some(1.0)), [grad_norm.clone(), ratio]);
        assert_eq!(told(None), [grad_norm]);
    }

    #[test]
    fn what_is_unknown_has_no_point_and_what_a_sample_says_stays_as_it_is() {
        let score = ScoreRow {
            set: "sums".into(),
            metric: "numeric".into(),
            value: 0.25,
            ..ScoreRow::default()
        };
        let row = EvalRow {
            step: 4,
            loss: Some(0.5),
            exact_match: Some(0.0),
            scores: vec![score],
            ..EvalRow::default()
        };
        let sample = EvalSample {
            set: "sums".into(),
            position: 7,
            attempt: 1,
            prompt: "# a\n<b>".into(),
            text: "c".into(),
            new_tokens: 1,
            ..EvalSample::default()
        };
        let text = "**prompt**\n\n    # a\n    <b>\n\n**answer**\n\n    c\n\n".to_owned();
        let expected = [
            ("eval/loss".to_owned(), Shown::Scalar(0.5)),
            ("eval/exact_match".to_owned(), Shown::Scalar(0.0)),
            ("eval/sums/numeric".to_owned(), Shown::Scalar(0.25)),
            ("samples/sums/7/1".to_owned(), Shown::Text(text)),
        ];
        assert_eq!(of_evaluation(&row, &[sample]), expected);
    }
}
