//! A model card: what is known about a model, and nothing else.

use std::fmt::Write;

use chandler_model::hub::ModelSource;
use serde_json::Value;

use super::ExportError;
use crate::store::{EvalRow, RunState, Store};

/// What the state directory knows of its newest model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The model that was trained: a folder, or an id on the hub.
    pub base_model: Option<String>,
    /// Whether this is an adapter to it.
    pub adapter: bool,
    /// The configuration of the newest run that came to its end.
    pub config: Option<Value>,
    /// Its last step.
    pub steps: Option<u64>,
    /// The loss of that step.
    pub loss: Option<f64>,
    /// Tokens up to that step.
    pub tokens: Option<u64>,
    /// Its evaluations.
    pub evals: Vec<EvalRow>,
}

/// The license of the base model, as its own card has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct License {
    /// Its id on the hub, such as `apache-2.0` or `other`.
    id: String,
    /// Of another license, its name and where it stands.
    name: Option<String>,
    link: Option<String>,
}

/// Keys of a run's configuration that a card has.
const SETTINGS: [(&str, &str); 9] = [
    ("learning rate", "/train/learning_rate"),
    ("schedule", "/train/lr_scheduler_type"),
    ("epochs", "/train/num_train_epochs"),
    ("rows in a micro-batch", "/train/per_device_train_batch_size"),
    ("micro-batches in a step", "/train/gradient_accumulation_steps"),
    ("longest row in tokens", "/data/max_length"),
    ("loss on", "/data/loss_on"),
    ("type", "/model/dtype"),
    ("seed", "/train/seed"),
];

impl Facts {
    /// Of the newest run that came to its end; nothing where none has.
    pub fn of_newest_run(store: &Store) -> Result<Self, ExportError> {
        let base_model = store.binding()?.map(|binding| binding.base_model);
        let runs = store.run_summaries(i64::MAX, i64::MAX as usize, None)?;
        let Some(run) = runs.into_iter().find(|run| run.state == RunState::Done) else {
            return Ok(Self { base_model, ..Self::default() });
        };
        let last = run.last_step.unwrap_or(0);
        let step = store.steps_after(run.id, last.saturating_sub(1), 1)?.pop();
        Ok(Self {
            base_model,
            adapter: false,
            config: store.run_config(run.id)?,
            steps: run.last_step,
            loss: run.last_loss,
            tokens: step.map(|step| step.num_tokens),
            evals: store.evals(run.id)?,
        })
    }

    /// The base model's id, where it is on the hub. The path of a folder is nobody's business.
    pub fn base_on_hub(&self) -> Option<&str> {
        let base = self.base_model.as_deref()?;
        match ModelSource::parse(base) {
            ModelSource::Hub { .. } => Some(base.split('@').next().unwrap_or(base)),
            ModelSource::Folder(_) => None,
        }
    }
}

impl License {
    /// The license that a card's metadata name.
    pub fn of_card(card: &Value) -> Option<Self> {
        let text = |key: &str| {
            let text = card.get(key)?.as_str()?;
            // It becomes a line of YAML between quotes.
            (!text.is_empty() && !text.contains(['"', '\\']) && !text.contains(char::is_control))
                .then(|| text.to_owned())
        };
        Some(Self { id: text("license")?, name: text("license_name"), link: text("license_link") })
    }
}

/// The card of the repository `id`, in Markdown with its metadata before it.
pub fn card(id: &str, facts: &Facts, license: Option<&License>) -> String {
    let base = facts.base_on_hub();
    let library = if facts.adapter { "peft" } else { "transformers" };
    let mut text = String::from("---\n");
    if let Some(base) = base {
        let _ = writeln!(text, "base_model: \"{base}\"");
    }
    if let Some(License { id, name, link }) = license {
        let _ = writeln!(text, "license: \"{id}\"");
        for (key, value) in [("license_name", name), ("license_link", link)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{key}: \"{value}\"");
            }
        }
    }
    let _ = writeln!(text, "library_name: {library}\npipeline_tag: text-generation");
    text.push_str("tags:\n- chandler\n---\n\n");
    let _ = writeln!(text, "# {}\n", id.rsplit('/').next().unwrap_or(id));
    let what = if facts.adapter { "An adapter for" } else { "Trained from" };
    let _ = match base {
        Some(base) => {
            writeln!(text, "{what} [{base}](https://huggingface.co/{base}), made with chandler.")
        }
        None => writeln!(text, "Made with chandler."),
    };
    training(&mut text, facts);
    evaluation(&mut text, &facts.evals);
    text
}

fn training(text: &mut String, facts: &Facts) {
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let mut rows = vec![
        ("steps", number(facts.steps)),
        ("tokens", number(facts.tokens)),
        ("loss of the last step", facts.loss.map(|loss| format!("{loss:.4}"))),
    ];
    if let Some(config) = &facts.config {
        let rank = config.pointer("/lora/r").and_then(Value::as_u64).unwrap_or(0);
        let method = match rank {
            0 => "all weights".to_owned(),
            rank => format!("LoRA of rank {rank}"),
        };
        rows.push(("method", Some(method)));
        rows.extend(SETTINGS.map(|(name, pointer)| {
            let value = config.pointer(pointer).filter(|value| !value.is_null());
            (name, value.map(|value| value.to_string().trim_matches('"').to_owned()))
        }));
    }
    rows.retain(|(_, value)| value.is_some());
    if rows.is_empty() {
        return;
    }
    text.push_str("\n## Training\n\n| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {} |", value.unwrap_or_default());
    }
}

fn evaluation(text: &mut String, evals: &[EvalRow]) {
    let (Some(first), Some(last)) = (evals.first(), evals.last()) else { return };
    text.push_str("\n## Evaluation\n\nThe first and the last of the run.\n\n");
    text.push_str(
        "| step | loss | perplexity | token accuracy | exact match |\n|---|---|---|---|---|\n",
    );
    let shown = if first.step == last.step { vec![last] } else { vec![first, last] };
    for eval in shown {
        let figure =
            |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |v| format!("{v:.4}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            eval.step,
            figure(eval.loss),
            figure(eval.perplexity),
            figure(eval.token_accuracy),
            figure(eval.exact_match),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_not_there() {
        let bare = card("me/mine", &Facts::default(), None);
        assert!(!bare.contains("license") && !bare.contains("base_model"), "{bare}");
        assert!(!bare.contains("##"), "{bare}");
        let folder = Facts { base_model: Some("/home/me/secret".into()), ..Facts::default() };
        assert!(!card("me/mine", &folder, None).contains("secret"));
    }

    #[test]
    fn what_is_known_is_told() {
        let facts = Facts {
            base_model: Some("Qwen/Qwen3-0.6B@v1".into()),
            adapter: true,
            config: Some(json!({ "train": { "learning_rate": 2e-5 }, "lora": { "r": 16 } })),
            steps: Some(300),
            loss: Some(0.5),
            tokens: Some(9000),
            evals: vec![EvalRow { step: 300, loss: Some(0.25), ..EvalRow::default() }],
        };
        let metadata = json!({ "license": "other", "license_name": "a\"b", "license_link": "L" });
        let license = License::of_card(&metadata).unwrap();
        let text = card("me/mine", &facts, Some(&license));
        for part in [
            "---\nbase_model: \"Qwen/Qwen3-0.6B\"\nlicense: \"other\"\nlicense_link: \"L\"\n",
            "library_name: peft\n",
            "# mine\n",
            "| learning rate | 0.00002 |",
            "| method | LoRA of rank 16 |",
            "| 300 | 0.2500 | unknown | unknown | unknown |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(License::of_card(&json!({ "tags": [] })), None);
    }
}
