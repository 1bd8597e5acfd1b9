//! `chandler quickstart`: everything once, on a small model that is made on the spot.

mod lesson;
mod plot;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use chandler_durable::{self as durable, RealFs, create_folder_all};
use chandler_model::{CausalLm, ModelConfig, write_model};
use clap::Args;
use serde_json::{Value, json};

use super::App;
use super::run::work;
use crate::config::{ConfigSources, ResolvedConfig};
use crate::daemon::{Controls, Until};
use crate::engine::EngineError;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::priority::Priority;
use crate::state_dir::StateDir;
use crate::store::{EvalRow, EvalSample, JobState, Store};

/// Where it happens unless `--dir` says otherwise.
const DEFAULT_DIR: &str = "chandler-quickstart";
/// Sentences to train on.
const TRAINED: usize = 1536;
/// Sentences to ask for.
const UNSEEN: usize = 64;

const FILES: [(&str, &str); 5] = [
    ("config.json", include_str!("../../../assets/quickstart/config.json")),
    ("generation_config.json", include_str!("../../../assets/quickstart/generation_config.json")),
    ("tokenizer.json", include_str!("../../../assets/quickstart/tokenizer.json")),
    ("tokenizer_config.json", include_str!("../../../assets/quickstart/tokenizer_config.json")),
    ("chat_template.jinja", include_str!("../../../assets/quickstart/chat_template.jinja")),
];

const CONFIG: &str = "\
# Made by `chandler quickstart`; `chandler config reference` explains every key.
[model]
path = \"{base}\"

[data]
max_length = 64

[train]
learning_rate = 1.5e-3
lr_scheduler_type = \"cosine\"
warmup_steps = 20
num_train_epochs = 4
per_device_train_batch_size = 32
save_steps = 100

[eval]
prompts = \"{unseen}\"
samples = 64
batch_size = 64
max_new_tokens = 24
eval_steps = 48

[daemon]
settle_seconds = 0.2
poll_seconds = 0.1
min_free_gib = 0.1
";

#[derive(Debug, Args)]
pub(super) struct QuickstartArgs {}

pub(super) fn quickstart(app: &App, _args: &QuickstartArgs) -> Result<Exit, Failure> {
    let started = Instant::now();
    let state = place(app)?;
    let root = state.root().to_owned();
    if !app.json {
        output::print(&format!(
            "Making a state directory, a small model with random weights, and {TRAINED} sentences \
             to learn.\n{}\n\n",
            root.display()
        ))?;
    }
    let (base, unseen) = (root.join("base"), root.join("unseen.jsonl"));
    let text = CONFIG
        .replace("{base}", &base.to_string_lossy())
        .replace("{unseen}", &unseen.to_string_lossy());
    state.init(&text)?;
    make_model(&base)?;
    let (train, asked) = lesson::sentences(TRAINED, UNSEEN);
    let write = |path: &Path, records: &[Value]| durable::write(path, lines(records).as_bytes());
    write(&unseen, &asked).map_err(EngineError::from)?;
    let file = state.inbox(Priority::Normal).join("german.jsonl");
    write(&file, &train).map_err(EngineError::from)?;

    let config = ResolvedConfig::load(&ConfigSources {
        file: Some(state.config_file()),
        set: app.set.clone(),
        ..ConfigSources::default()
    })?
    .config;
    let tally = work(&state, &config, &app.terminal, &Controls::default(), Until::Empty, None)?;
    if tally.done == 0 {
        let hint = Some(format!("the log is in {}", state.logs().display()));
        return Err(Failure::new(Exit::Error, anyhow::anyhow!("the file was not learned"), hint));
    }
    report(app, &state, &Store::open(&state.database())?, started)
}

/// The folder that the user named, else the first of `chandler-quickstart`, `…-2`, … that is free.
/// One that is running is named; the remains of a finished one are left alone.
fn place(app: &App) -> Result<StateDir, Failure> {
    for number in 1..=u32::MAX {
        let name = match number {
            1 => DEFAULT_DIR.to_owned(),
            number => format!("{DEFAULT_DIR}-{number}"),
        };
        let state = app.state_or(&name);
        if !state.root().exists() {
            return Ok(state);
        }
        drop(crate::lock::hold(&state)?);
        if app.dir_was_given {
            if !state.config_file().exists() {
                return Ok(state);
            }
            let root = state.root().display();
            let error = anyhow::anyhow!("{root} is there from an earlier quickstart");
            let hint = format!("`rm -r {root}` removes it, `--dir NEW` leaves it alone");
            return Err(Failure::new(Exit::StateDir, error, Some(hint)));
        }
    }
    Err(Failure::new(Exit::StateDir, anyhow::anyhow!("no name is free"), None))
}

fn make_model(folder: &Path) -> Result<(), EngineError> {
    create_folder_all(&RealFs, folder)?;
    for (name, text) in FILES {
        durable::write(&folder.join(name), text.as_bytes())?;
    }
    let config = ModelConfig::read(folder)?;
    let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu)?;
    let tensors: Vec<_> =
        model.params().iter().map(|(_, param)| (param.name.as_str(), &param.value)).collect();
    write_model(&RealFs, folder, model.config(), &tensors, DType::F32, folder)?;
    Ok(())
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn report(app: &App, state: &StateDir, store: &Store, started: Instant) -> Result<Exit, Failure> {
    let job = store.jobs_in(JobState::Done)?.pop();
    let run = match job {
        Some(job) => store.last_run_of(job.id)?,
        None => None,
    };
    let Some(run) = run else {
        return Err(Failure::new(Exit::Error, anyhow::anyhow!("the run left no record"), None));
    };
    let losses: Vec<f64> = store.steps(run.id)?.iter().map(|row| row.loss).collect();
    let evals = store.evals(run.id)?;
    let (Some(first), Some(last)) = (evals.first(), evals.last()) else {
        return Err(Failure::new(Exit::Error, anyhow::anyhow!("there was no evaluation"), None));
    };
    let samples = |eval: &EvalRow| store.eval_samples(run.id, eval.step);
    let mut text = format!("\nloss\n{}\n", plot::curve(&losses));
    text += &answers(&samples(first)?, &samples(last)?);
    let share = |eval: &EvalRow| eval.exact_match.unwrap_or(0.0) * 100.0;
    let course: Vec<String> =
        evals.iter().map(|eval| format!("{:.0} % (step {})", share(eval), eval.step)).collect();
    text += &format!(
        "\nexact match on {UNSEEN} sentences that were not trained on: {}\n",
        course.join(" → ")
    );
    text += &artefacts(state);
    let seconds = started.elapsed().as_secs_f64();
    text += &format!("\n{seconds:.0} s in all\n");
    let value = json!({
        "state_dir": state.root(),
        "model": state.model(),
        "steps": losses.len(),
        "first_loss": losses.first(),
        "last_loss": losses.last(),
        "exact_match": { "before": first.exact_match, "after": last.exact_match },
        "seconds": seconds,
    });
    app.print(&text, &value)?;
    Ok(Exit::Ok)
}

fn answers(before: &[EvalSample], after: &[EvalSample]) -> String {
    let mut text = "sentences that were not trained on, before and after\n".to_owned();
    for (before, after) in before.iter().zip(after).take(4) {
        let asked = after.prompt.lines().find(|line| line.contains("German")).unwrap_or_default();
        let garbled: String = before.text.chars().filter(|c| !c.is_control()).take(40).collect();
        text += &format!("  {asked}\n    before: {garbled}\n    after:  {}\n", after.text);
    }
    text
}

fn artefacts(state: &StateDir) -> String {
    let root = state.root();
    let shown = |path: PathBuf| path.display().to_string();
    let rows = [
        ("the model", shown(state.model())),
        ("where it began", shown(root.join("base"))),
        ("today's snapshot", shown(state.snapshots())),
        ("checkpoints", shown(state.checkpoints())),
        ("the file, archived", shown(state.done())),
        ("steps, evals, answers", shown(state.database())),
        ("logs", shown(state.logs())),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(what, path)| vec![format!("  {what}"), path]).collect();
    let (root, model) = (root.display(), state.model().display().to_string());
    format!(
        "\nwhere everything is\n{}\ntry next\n  chandler chat --model {model}\n  chandler generate \
         --model {model} --prompt \"Translate into German: nine blue owls sing\"\n  chandler status \
         --dir {root}\n  chandler export model my-model --model {model} --dtype bf16\n",
        output::table(&rows)
    )
}
