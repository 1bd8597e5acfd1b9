//! Scores of eval sets beside those of the base model.

use std::path::Path;

use crate::evals::{once, rows, state_of};
use crate::support::{goldens, model, ok, put, text_of};

/// Set, metric and value of all that is known of the base model.
fn of_base(state: &str) -> Vec<(String, String, f64)> {
    rows(state, "SELECT set_name, metric, value FROM base_scores ORDER BY 1, 2", |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
}

/// The same of a set in a job's evaluation at step 0.
fn at_step_0(state: &str, job: i64, set: &str) -> Vec<(String, String, f64)> {
    let all: Vec<(i64, String, String, f64)> = rows(
        state,
        "SELECT job_id, set_name, metric, value FROM scores JOIN runs ON runs.id = run_id
         WHERE step = 0 ORDER BY 2, 3",
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    );
    // A gap is one to the job's own rows.
    let wanted = all.into_iter().filter(|(of, name, metric, _)| {
        *of == job && name == set && metric != "generalisation_gap"
    });
    wanted.map(|(_, set, metric, value)| (set, metric, value)).collect()
}

fn without_gap(mut scores: Vec<(String, String, f64)>) -> Vec<(String, String, f64)> {
    scores.retain(|(_, metric, _)| metric != "generalisation_gap");
    scores
}

fn put_set(state: &str, name: &str, record: &str) {
    let evals = Path::new(state).join("evals");
    put(&evals.join(format!("{name}.jsonl")), record);
    put(&evals.join(format!("{name}.toml")), "scorer = \"chrf\"\n");
}

fn put_file(state: &str, name: &str) {
    let inbox = Path::new(state).join("inbox");
    std::fs::copy(goldens().join("data/messages.jsonl"), inbox.join(name)).unwrap();
}

const SUMS: &str = "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n";
const CITIES: &str = "{\"prompt\": \"The capital of France is\", \"completion\": \" Paris\"}\n";

#[test]
fn the_base_model_is_asked_what_a_later_set_asks() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    put_set(&state, "sums", SUMS);
    once(&state, &["train.max_steps=2"]);
    // The first job begins with the base model, which is not asked twice.
    assert_eq!(without_gap(of_base(&state)), at_step_0(&state, 1, "sums"));

    put_set(&state, "cities", CITIES);
    put_file(&state, "b.jsonl");
    let log = once(&state, &["train.max_steps=2"]);
    assert!(log.contains("base model: cities chrf"), "{log}");
    assert!(log.contains("over the base model"), "{log}");
    let cities = |scores: Vec<(String, String, f64)>| {
        let these = scores.into_iter().filter(|(set, _, _)| set == "cities");
        these.collect::<Vec<_>>()
    };
    // What another state directory finds that begins with it.
    let other = tempfile::tempdir().unwrap();
    let fresh = state_of(other.path());
    put_set(&fresh, "cities", CITIES);
    once(&fresh, &["train.max_steps=1"]);
    let (asked, expected) = (cities(of_base(&state)), at_step_0(&fresh, 1, "cities"));
    assert_eq!(asked, expected);
    assert_ne!(asked, at_step_0(&state, 2, "cities"), "the newest model has learned");
    let answers: Vec<i64> =
        rows(&state, "SELECT count(*) FROM base_answers GROUP BY set_name", |row| row.get(0));
    assert_eq!(answers, [1, 1]);

    // A third job has nothing new to ask.
    put_file(&state, "c.jsonl");
    let log = once(&state, &["train.max_steps=1"]);
    assert!(!log.contains("base model: "), "{log}");
}

#[test]
fn a_base_model_that_is_gone_or_not_wanted_keeps_nobody_from_training() {
    let folder = tempfile::tempdir().unwrap();
    let state = state_of(folder.path());
    let base = folder.path().join("base");
    let named = format!("model.path={}", text_of(&base));
    let put_base = |name: &str| {
        std::fs::create_dir(&base).unwrap();
        for entry in std::fs::read_dir(model(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
        }
    };
    put_base("qwen3");
    once(&state, &["train.max_steps=1", &named]);
    put_set(&state, "sums", SUMS);
    std::fs::remove_dir_all(&base).unwrap();
    put_file(&state, "b.jsonl");
    let log = once(&state, &["train.max_steps=1", &named]);
    assert!(log.contains("not held against the base model's") && log.contains("hint:"), "{log}");
    // One with another vocabulary is none of its ancestors.
    put_base("gemma3");
    put_file(&state, "c.jsonl");
    let log = once(&state, &["train.max_steps=1", &named]);
    assert!(log.contains("is another one: "), "{log}");
    put_file(&state, "d.jsonl");
    let log = once(&state, &["train.max_steps=1", &named, "eval.compare_to_base=false"]);
    assert!(!log.contains("base model"), "{log}");
    assert_eq!(of_base(&state), []);
    let done = ok(&["status", "--dir", &state, "--json"]);
    assert!(done.contains("\"done\": 4"), "{done}");
}
