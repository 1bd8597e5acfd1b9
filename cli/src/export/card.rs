//! A model card: what is known about a model, and nothing else.

use std::fmt::Write;

use chandler_model::hub::ModelSource;
use serde_json::Value;

use super::ExportError;
use crate::store::{EvalRow, RunState, RunSummary, Store};

/// What is known of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The model that was trained: a folder, or an id on the hub.
    pub base_model: Option<String>,
    /// Whether this is an adapter to it.
    pub adapter: bool,
    /// The configuration of the run that made it.
    pub config: Option<Value>,
    /// The step that the weights are of.
    pub steps: Option<u64>,
    /// The loss of that step.
    pub loss: Option<f64>,
    /// Tokens up to that step.
    pub tokens: Option<u64>,
    /// The run's evaluations up to that step.
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
    /// Of a model of the state directory, by the mark in its manifest: of the run that made it, and
    /// of the step whose weights it has. Of one without a mark the base model alone is known.
    pub fn of_marked_model(store: &Store, mark: &Value) -> Result<Self, ExportError> {
        let base_model = store.binding()?.map(|binding| binding.base_model);
        let Some(run) = run_of_mark(store, mark)? else {
            return Ok(Self { base_model, ..Self::default() });
        };
        let steps = mark.pointer("/report/model_step").and_then(Value::as_u64).or(run.last_step);
        let of_the_model = steps.unwrap_or(0);
        let row = store.steps_after(run.id, of_the_model.saturating_sub(1), 1)?.pop();
        let row = row.filter(|row| row.step == of_the_model);
        let mut evals = store.evals(run.id)?;
        evals.retain(|eval| eval.step <= of_the_model);
        Ok(Self {
            base_model,
            adapter: false,
            config: store.run_config(run.id)?,
            steps,
            loss: row.as_ref().map(|row| row.loss),
            tokens: row.as_ref().map(|row| row.num_tokens),
            evals,
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

/// The run that a mark tells of: a job that was queued once more has had others before.
fn run_of_mark(store: &Store, mark: &Value) -> Result<Option<RunSummary>, ExportError> {
    let Some(job) = mark["job_id"].as_i64() else { return Ok(None) };
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let queued_at = mark["queued_at"].as_str().and_then(time);
    let mut runs = store.run_summaries(i64::MAX, i64::MAX as usize, Some(job))?;
    runs.retain(|run| queued_at.is_none_or(|at| time(&run.started_at).is_none_or(|b| b >= at)));
    // The first that came to its end; of a process that died behind its last step there is none.
    let done = runs.iter().rposition(|run| run.state == RunState::Done);
    Ok(if runs.is_empty() { None } else { Some(runs.swap_remove(done.unwrap_or(0))) })
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
        ("loss of that step", facts.loss.map(|loss| format!("{loss:.4}"))),
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
    text.push_str("\n## Evaluation\n\nThe first of the run, and the last up to this model.\n\n");
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
    use crate::config::Config;
    use crate::priority::Priority;
    use crate::store::{NewJob, StepRow};

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

    #[test]
    fn a_model_is_told_of_by_the_run_that_made_it_and_its_own_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("chandler.db")).unwrap();
        let mut trained = |loss: f64| {
            let file = NewJob {
                file_name: "a.jsonl",
                path: &folder.path().join("a.jsonl"),
                size_bytes: 1,
                priority: Priority::Normal,
            };
            let job = store.enqueue(&file).unwrap();
            let run = store.begin_run(Some(job.id), 1, &Config::default()).unwrap();
            for step in 1..=3 {
                let row = StepRow {
                    step,
                    loss: loss + step as f64,
                    grad_norm: 1.0,
                    lr: 1e-3,
                    num_tokens: 10 * step,
                    mean_token_accuracy: None,
                    tokens_per_s: None,
                    peak_bytes: None,
                    memory: std::collections::BTreeMap::new(),
                    layers: vec![],
                };
                store.record_step(run, &row).unwrap();
                let eval = EvalRow { step, loss: Some(loss), ..EvalRow::default() };
                store.record_eval(run, &eval, &[]).unwrap();
            }
            store.end_run(run, RunState::Done, None).unwrap();
            job
        };
        let (first, _second) = (trained(0.0), trained(100.0));
        let mark = json!({
            "job_id": first.id, "queued_at": first.created_at, "report": { "model_step": 2 },
        });
        let facts = Facts::of_marked_model(&store, &mark).unwrap();
        assert_eq!((facts.steps, facts.loss, facts.tokens), (Some(2), Some(2.0), Some(20)));
        assert_eq!(facts.evals.iter().map(|eval| eval.step).collect::<Vec<_>>(), [1, 2]);
        let unmarked = Facts::of_marked_model(&store, &Value::Null).unwrap();
        assert_eq!(unmarked, Facts::default());
        let later = json!({ "job_id": first.id, "queued_at": "2999-01-01T00:00:00Z" });
        assert_eq!(Facts::of_marked_model(&store, &later).unwrap(), Facts::default());
    }
}
