//! Eval sets, their scorers, the best model, early stopping, wrong answers that come back.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chandler_durable::{RealFs, rename_durably};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{chandler, goldens, model, ok, put, run, text_of};

const QUICK: [&str; 18] = [
    "--set",
    "train.per_device_train_batch_size=2",
    "--set",
    "eval.max_new_tokens=3",
    "--set",
    "eval.samples=2",
    "--set",
    "data.max_length=160",
    "--set",
    "data.eval_split=0.25",
    "--set",
    "daemon.min_free_gib=0",
    "--set",
    "daemon.settle_seconds=0",
    "--set",
    "train.learning_rate=0.01",
    "--set",
    "eval.eval_steps=1",
];

pub(crate) fn state_of(folder: &Path) -> String {
    let state = text_of(&folder.join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    std::fs::copy(goldens().join("data/messages.jsonl"), folder.join("state/inbox/a.jsonl"))
        .unwrap();
    state
}

pub(crate) fn once(state: &str, set: &[&str]) -> String {
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let output = run(&[&["run", "--once", "--dir", state], &QUICK[..], &set[..]].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    errors
}

/// The same, but stopped as soon as `file` is there.
fn once_until(state: &str, set: &[&str], file: &Path) {
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let mut command = chandler();
    command.args(["run", "--once", "--dir", state]).args(QUICK).args(set);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !file.exists() {
        assert!(begun.elapsed() < Duration::from_mins(2), "{} never came", file.display());
        assert!(child.try_wait().unwrap().is_none(), "it ended before {}", file.display());
        sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn report_of(state: &str, job: i64) -> Value {
    let reports: Vec<(i64, String)> =
        rows(state, "SELECT id, report FROM jobs", |row| Ok((row.get(0)?, row.get(1)?)));
    let report = reports.iter().find(|(id, _)| *id == job).unwrap();
    serde_json::from_str(&report.1).unwrap()
}

fn weights(state: &str) -> Vec<u8> {
    std::fs::read(Path::new(state).join("model/model.safetensors")).unwrap()
}

pub(crate) fn rows<T>(
    state: &str,
    query: &str,
    take: fn(&rusqlite::Row) -> rusqlite::Result<T>,
) -> Vec<T> {
    let connection = Connection::open(Path::new(state).join("chandler.db")).unwrap();
    let mut statement = connection.prepare(query).unwrap();
    let rows = statement.query_map([], take).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn every_set_is_asked_and_scored_its_own_way() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let evals = Path::new(&state).join("evals");
    put(&evals.join("sums.jsonl"), "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n".repeat(3));
    put(&evals.join("sums.toml"), "scorer = \"numeric\"\nsamples = 2\nmax_new_tokens = 2\n");
    put(
        &evals.join("sky.jsonl"),
        r#"{"question": "The sky is", "choices": ["green", "blue"], "answer": 1}"#,
    );
    put(&evals.join("sky.toml"), "scorer = \"choice\"\nloss = false\nevery = 2\n");
    put(&evals.join("judged.jsonl"), r#"{"question": "Say it", "reference": ["a", "b"]}"#);
    put(
        &evals.join("judged.toml"),
        "loss = false\nattempts = 3\ntemperature_end = 1.0\n[scorer]\nname = \"command\"\ncommand = \
         [\"sh\", \"-c\", \"while read line; do echo 0.5; done\"]\n",
    );
    // What is a question alone needs no settings: it has no loss to take.
    put(&evals.join("plain.jsonl"), r#"{"question": "Say it", "reference": "a"}"#);
    put(
        &evals.join("pick.jsonl"),
        r#"{"question": "The sky is", "choices": ["green", "blue"], "answer": 1}"#,
    );
    put(&evals.join("broken.jsonl"), "{]");
    put(&evals.join("odd.jsonl"), r#"{"question": "Say it", "reference": "a"}"#);
    put(&evals.join("odd.toml"), "loss = false\nscorer = \"rogue\"\n");
    let log = once(&state, &["train.max_steps=3"]);
    assert!(log.contains("eval set broken is left out") && log.contains("line 1"), "{log}");
    assert!(log.contains("eval set odd is left out") && log.contains("rouge_l"), "{log}");

    let found: Vec<(i64, String, String)> =
        rows(&state, "SELECT step, set_name, metric FROM scores ORDER BY 1, 2, 3", |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        });
    let at = |step: i64| -> Vec<String> {
        let of_step = found.iter().filter(|(at, _, _)| *at == step);
        of_step.map(|(_, set, metric)| format!("{set} {metric}")).collect()
    };
    let own =
        ["exact_match", "loss", "perplexity", "token_accuracy"].map(|m| format!("held-out {m}"));
    let judged = ["command", "pass@1", "pass@2", "pass@3"].map(|m| format!("judged {m}"));
    let sums = ["generalisation_gap", "loss", "numeric", "perplexity", "token_accuracy"];
    let sums = sums.map(|m| format!("sums {m}"));
    let sky = ["sky choice_accuracy".to_owned()];
    let bare = ["pick", "plain"].map(|set| format!("{set} exact_match"));
    assert_eq!(at(0), [&own[..], &judged, &bare, &sky, &sums].concat());
    assert_eq!(at(1), [&own[..], &judged, &bare, &sums].concat());
    assert_eq!(at(3), at(0), "the last evaluation has every set");

    let judged: Vec<(i64, i64, f64)> = rows(
        &state,
        "SELECT position, attempt, score FROM answers WHERE set_name = 'judged' AND step = 1",
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    );
    assert_eq!(judged, [(0, 0, 0.5), (0, 1, 0.5), (0, 2, 0.5)]);
    let gains: Vec<Option<f64>> =
        rows(&state, "SELECT gain FROM scores WHERE metric = 'command' ORDER BY step", |row| {
            row.get(0)
        });
    assert_eq!(gains, [None, Some(0.0), Some(0.0), Some(0.0)]);
    let timed: Vec<i64> = rows(
        &state,
        "SELECT count(*) FROM answers WHERE prompt_tokens > 0 AND (seconds > 0 OR new_tokens = 0)",
        |row| row.get(0),
    );
    let all: Vec<i64> = rows(&state, "SELECT count(*) FROM answers", |row| row.get(0));
    assert_eq!(timed, all);
}

#[test]
fn sets_are_asked_of_two_models_by_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    once(&state, &["train.max_steps=3"]);
    let sets = folder.path().join("sets");
    std::fs::create_dir(&sets).unwrap();
    let questions = ["two red cats", "nine blue owls", "one black dog"]
        .map(|words| format!("{{\"prompt\": \"{words}\", \"completion\": \" sing\"}}\n"));
    put(&sets.join("songs.jsonl"), questions.concat());
    put(&sets.join("songs.toml"), "scorer = \"chrf\"\nmax_new_tokens = 4\n");
    let (newest, base) = (Path::new(&state).join("model"), model("qwen3"));
    let eval = |args: &[&str]| ok(&[&["eval", "--model", text_of(&newest)], args].concat());
    let json = |args: &[&str]| -> Value { serde_json::from_str(&eval(args)).unwrap() };
    let both = json(&["--evals", text_of(&sets), "--against", &base, "--json"]);
    let score = |all: &Value, metric: &str| -> Value {
        let scores = all["scores"].as_array().unwrap();
        scores.iter().find(|score| score["metric"] == metric).unwrap().clone()
    };
    let (chrf, of_base) = (score(&both, "chrf"), score(&both["against"], "chrf"));
    assert_eq!((&chrf["count"], &chrf["base"]), (&3.into(), &of_base["value"]));
    let difference = chrf["value"].as_f64().unwrap() - of_base["value"].as_f64().unwrap();
    assert!((chrf["gain"].as_f64().unwrap() - difference).abs() < 1e-12, "{chrf}");
    let loss = score(&both, "loss");
    let [low, value, high] = ["low", "value", "high"].map(|key| loss[key].as_f64().unwrap());
    assert!(low < value && value < high && loss["gain"].is_null(), "{loss}");
    assert_ne!(loss["base"], loss["value"], "it has learned");

    // One set by its file, whose settings lie beside it; and the same file as mere records.
    let one = json(&["--data", text_of(&sets.join("songs.jsonl")), "--json"]);
    assert_eq!(score(&one, "chrf")["value"], chrf["value"]);
    let text = eval(&["--data", text_of(&sets.join("songs.jsonl")), "--against", &base]);
    assert!(text.contains("songs chrf") && text.contains("against 0"), "{text}");
    std::fs::remove_file(sets.join("songs.toml")).unwrap();
    let records = eval(&["--data", text_of(&sets.join("songs.jsonl"))]);
    assert!(records.starts_with("loss ") && records.contains(" ["), "{records}");
    let empty = run(&["eval", "--model", &base, "--evals", text_of(&folder.path().join("none"))]);
    let said = String::from_utf8_lossy(&empty.stderr).into_owned();
    assert!(!empty.status.success() && said.contains("hint: "), "{said}");
}

#[test]
fn evaluations_with_sets_leave_training_alone() {
    let losses = |with_sets: bool| -> Vec<i64> {
        let folder = tempfile::tempdir().unwrap();
        let state = state_of(folder.path());
        if with_sets {
            let evals = Path::new(&state).join("evals");
            put(&evals.join("sums.jsonl"), "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n");
            put(&evals.join("sums.toml"), "scorer = \"chrf\"\nattempts = 2\ntemperature = 0.8\n");
        }
        once(&state, &["train.max_steps=3"]);
        rows(&state, "SELECT loss FROM metrics ORDER BY step", |row| {
            row.get::<_, f64>(0).map(|loss| loss.to_bits() as i64)
        })
    };
    assert_eq!(losses(true), losses(false));
}

#[test]
fn a_job_ends_early_and_leaves_its_best_model() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    // A rate at which the loss on unseen rows rises after some steps.
    let log = once(
        &state,
        &[
            "train.max_steps=40",
            "train.learning_rate=0.05",
            "train.lr_scheduler_type=constant",
            "eval.early_stopping_patience=3",
            "eval.load_best_model_at_end=true",
            "train.save_steps=1000",
        ],
    );
    let losses: Vec<(i64, f64)> =
        rows(&state, "SELECT step, loss FROM evals ORDER BY step", |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
    let (best, _) = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let (last, _) = losses.last().unwrap();
    assert!(*best > 0 && *last == best + 3 && *last < 40, "{losses:?}");
    let report = report_of(&state, 1);
    assert_eq!(
        (report["steps"].as_i64(), report["model_step"].as_i64()),
        (Some(*last), Some(*best))
    );
    assert!(log.contains("the job ends here"), "{log}");

    // It is the model of a run that goes just so far.
    let other = tempfile::tempdir().unwrap();
    let shorter = state_of(other.path());
    let steps = format!("train.max_steps={best}");
    once(&shorter, &[&steps, "train.learning_rate=0.05", "train.lr_scheduler_type=constant"]);
    assert!(weights(&state) == weights(&shorter), "another model");
}

#[test]
fn wrong_answers_come_back_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let evals = Path::new(&state).join("evals");
    let record = r#"{"prompt": "1 + 1 =", "completion": " an answer that it cannot know"}"#;
    put(&evals.join("sums.jsonl"), format!("{record}\n"));
    // What training cannot read does not come back.
    put(&evals.join("asked.jsonl"), r#"{"question": "1 + 1?", "reference": "what nobody says"}"#);
    let missing = ["eval.early_stopping_patience=1", "eval.metric_for_best_model=no/thing"];
    let log =
        once(&state, &[&["train.max_steps=2", "eval.requeue_wrong=true"], &missing[..]].concat());
    assert_eq!(log.matches("has no no/thing").count(), 2, "once for each job: {log}");
    let jobs: Vec<(String, String)> =
        rows(&state, "SELECT file_name, state FROM jobs ORDER BY id", |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
    let done = |name: &str| (name.to_owned(), "done".to_owned());
    assert_eq!(jobs, [done("a.jsonl"), done("wrong-answers-of-job-1.jsonl")]);
    let archived = Path::new(&state).join("done/wrong-answers-of-job-1.jsonl");
    assert_eq!(std::fs::read_to_string(archived).unwrap(), format!("{record}\n"));
}

#[test]
fn the_base_may_be_the_best_model() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    // A rate that only does harm.
    let set = ["train.max_steps=2", "train.learning_rate=1", "eval.load_best_model_at_end=true"];
    once(&state, &set);
    let losses: Vec<f64> = rows(&state, "SELECT loss FROM evals ORDER BY step", |row| row.get(0));
    assert!(losses.len() == 3 && losses[1..].iter().all(|loss| *loss > losses[0]), "{losses:?}");
    let report = report_of(&state, 1);
    assert_eq!((report["steps"].as_i64(), report["model_step"].as_i64()), (Some(2), Some(0)));
}

#[test]
fn a_stop_within_the_last_evaluation_hides_no_best_model() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let evals = Path::new(&state).join("evals");
    // It works in the folder of the sets, and once waits for its end in the last evaluation.
    let script = r#"while read -r line; do
        case "$line" in *'"step":2}') if [ ! -e waiting ]; then : > waiting; sleep 600; fi;; esac
        echo 0.5; done"#;
    let settings = format!(
        "loss = false\n[scorer]\nname = \"command\"\nlimits = {{ seconds_per_answer = 600 }}\n\
         command = [\"sh\", \"-c\", '''{script}''']\n"
    );
    put(&evals.join("judged.jsonl"), r#"{"question": "Say it", "reference": "a"}"#);
    put(&evals.join("judged.toml"), settings);
    let set =
        ["train.max_steps=2", "train.learning_rate=0.003", "eval.load_best_model_at_end=true"];
    once_until(&state, &set, &evals.join("waiting"));
    let steps = |state: &str| -> Vec<i64> {
        rows(state, "SELECT step FROM evals ORDER BY step", |row| row.get(0))
    };
    assert_eq!(steps(&state), [0, 1], "what was cut short is not recorded");
    assert!(!Path::new(&state).join("model").exists());
    once(&state, &set);
    assert_eq!(steps(&state), [0, 1, 2]);
    let losses: Vec<f64> = rows(&state, "SELECT loss FROM evals ORDER BY step", |row| row.get(0));
    assert!(losses.windows(2).all(|two| two[1] < two[0]), "{losses:?}");
    assert_eq!(report_of(&state, 1)["model_step"].as_i64(), Some(2));
    let query = "SELECT value FROM scores WHERE set_name = 'judged' ORDER BY step";
    let judged: Vec<f64> = rows(&state, query, |row| row.get(0));
    assert_eq!(judged, [0.5; 3]);
}

#[test]
fn a_job_that_was_cut_off_begins_anew_on_a_model_that_has_learned_since() {
    let set = ["train.max_steps=40", "train.save_steps=5", "eval.eval_steps=0"];
    let data = goldens().join("data/messages.jsonl");
    let add = |state: &str| {
        std::fs::copy(&data, Path::new(state).join("inbox/b.jsonl")).unwrap();
    };
    let folder = tempfile::tempdir().unwrap();
    let [whole, cut, retried] = ["whole", "cut", "retried"].map(|name| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        state_of(&folder)
    });
    once(&whole, &set);
    add(&whole);
    once(&whole, &set);

    let checkpoints = Path::new(&cut).join("checkpoints");
    once_until(&cut, &set, &checkpoints.join("job-1/checkpoint-5/manifest.json"));
    let aside = folder.path().join("aside");
    rename_durably(&RealFs, &checkpoints.join("job-1"), &aside).unwrap();
    once(&cut, &set);
    // As if the second job had been cut off before the first one finished.
    add(&cut);
    rename_durably(&RealFs, &aside, &checkpoints.join("job-2")).unwrap();
    let log = once(&cut, &set);
    assert!(log.contains("begins anew") && !log.contains("goes on after step"), "{log}");
    assert!(weights(&whole) == weights(&cut), "another model");

    // A first job that fails, a second that is stopped midway, and the first once more before it.
    let too_short = ["--set", "data.max_length=2"];
    let failed = run(&[&["run", "--once", "--dir", &retried], &QUICK[..], &too_short].concat());
    assert!(!failed.status.success());
    add(&retried);
    let second = Path::new(&retried).join("checkpoints/job-2");
    once_until(&retried, &set, &second.join("checkpoint-5/manifest.json"));
    ok(&["retry", "--dir", &retried, "1"]);
    let log = once(&retried, &set);
    assert!(!log.contains("goes on after step"), "{log}");
    assert!(weights(&whole) == weights(&retried), "another model");
    for state in [&cut, &retried] {
        let kept = std::fs::read_dir(Path::new(state).join("checkpoints")).unwrap();
        let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(kept, ["job-2"]);
    }
}
