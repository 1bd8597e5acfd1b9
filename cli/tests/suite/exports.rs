//! What leaves the state directory in the formats of others, and what comes in as Parquet.
//!
//! `tests/counterparts/check.py` has those others read it, where they are installed.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use parquet::file::reader::SerializedFileReader;
use parquet::record::Field;
use serde_json::Value;

use crate::hostile::watched;
use crate::python::skipped;
use crate::support::{chandler, fails, goldens, model, ok, put, run, text_of};

fn fixture(name: &str) -> std::path::PathBuf {
    goldens().join("../ecosystem").join(name).canonicalize().unwrap()
}

const QUICK: [&str; 20] = [
    "--set",
    "train.max_steps=6",
    "--set",
    "train.per_device_train_batch_size=2",
    "--set",
    "eval.eval_steps=3",
    "--set",
    "eval.max_new_tokens=4",
    "--set",
    "eval.samples=2",
    "--set",
    "data.eval_split=0.2",
    "--set",
    "data.max_length=160",
    "--set",
    "daemon.min_free_gib=0",
    "--set",
    "daemon.settle_seconds=0",
    "--set",
    "log.tensorboard=true",
];

/// A state directory that has learned from a Parquet file, asked its own rows and a set of sums.
fn learned(folder: &Path, extra: &[&str]) -> String {
    let state = text_of(&folder.join("state")).to_owned();
    ok(&["init", "--dir", &state, "--model", &model("qwen3")]);
    ok(&["add", "--dir", &state, text_of(&fixture("chat.parquet"))]);
    let evals = Path::new(&state).join("evals");
    put(&evals.join("sums.jsonl"), "{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}\n".repeat(2));
    put(
        &evals.join("sums.toml"),
        "scorer = \"numeric\"\nloss = false\nattempts = 2\ntemperature = 1.0\nmax_new_tokens = 2\n",
    );
    ok(&[&["run", "--once", "--dir", &state], &QUICK[..], extra].concat());
    let jobs: Value = serde_json::from_str(&ok(&["jobs", "--dir", &state, "--json"])).unwrap();
    assert_eq!(jobs[0]["state"], "done", "{jobs}");
    state
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows of a table that chandler wrote as Parquet.
fn parquet_rows(path: &Path) -> Vec<Value> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let value = |field: &Field| match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(value) => value.clone().into(),
        other => panic!("{other:?}"),
    };
    let object = |row: parquet::record::Row| {
        row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
    };
    reader.into_iter().map(|row| object(row.unwrap())).collect()
}

#[test]
fn tables_and_event_files_hold_what_the_database_has() {
    let folder = tempfile::tempdir().unwrap();
    let state = learned(folder.path(), &[]);
    let place = folder.path().join("exports");
    fs::create_dir(&place).unwrap();
    let export = |what: &str, name: &str| {
        let file = place.join(name);
        let told = ok(&["export", what, text_of(&file), "--dir", &state, "--json"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        (file, told["rows"].as_u64().unwrap())
    };
    for what in ["metrics", "layers", "evals", "scores", "samples", "events"] {
        let printed = ok(&["export", what, "--format", "jsonl", "--dir", &state]);
        let (file, count) = export(what, &format!("{what}.jsonl"));
        assert_eq!(fs::read_to_string(file).unwrap(), printed, "{what}");
        let expected = rows(&printed);
        assert!(expected.len() as u64 == count && count > 0, "{what}: {count}");
        let (file, _) = export(what, &format!("{what}.parquet"));
        assert_eq!(parquet_rows(&file), expected, "{what}");
        let (file, _) = export(what, &format!("{what}.csv"));
        let text = fs::read_to_string(file).unwrap();
        let names: Vec<&str> = text.split("\r\n").next().unwrap().split(',').collect();
        assert_eq!(names, expected[0].as_object().unwrap().keys().collect::<Vec<_>>(), "{what}");
    }
    let steps = rows(&fs::read_to_string(place.join("metrics.jsonl")).unwrap());
    assert_eq!(steps.len(), 6);
    assert!(steps.iter().all(|row| row["run_id"] == 1 && row["job_id"] == 1), "{steps:?}");
    assert!(steps[5]["memory_weights_bytes"].as_u64().unwrap() > 0);
    two_sets(&place);
    let of_the_job = ok(&["export", "metrics", "--job", "1", "--format", "jsonl", "--dir", &state]);
    assert_eq!(rows(&of_the_job), steps);
    assert!(fails(2, &["export", "metrics", "--run", "9", "--dir", &state]).contains("no run 9"));
    assert!(fails(1, &["export", "samples", "--job", "9", "--dir", &state]).contains("no job 9"));

    // A link stays one, and a device is written to.
    let link = place.join("link.csv");
    std::os::unix::fs::symlink("behind.csv", &link).unwrap();
    ok(&["export", "metrics", text_of(&link), "--dir", &state]);
    assert!(link.is_symlink() && place.join("behind.csv").is_file());
    let printed = ok(&["export", "metrics", "--dir", &state]);
    let through = ok(&["export", "metrics", "/dev/stdout", "--dir", &state]);
    assert!(through.starts_with(&printed), "{through}");

    let events = place.join("written");
    ok(&["export", "metrics", text_of(&events), "--format", "tensorboard", "--dir", &state]);
    copy_folder(&Path::new(&state).join("runs"), &place.join("live"));
    for kind in ["written", "live"] {
        let records = event_records(&place.join(kind).join("run-1"));
        // The version, 6 steps, evaluations at 0, 3 and 6.
        assert_eq!(records.len(), 1 + 6 + 3, "{kind}");
    }
    gguf_files(&place);
    counterparts(&place);
}

/// Answers and scores stand under their set and their question, in every evaluation.
fn two_sets(place: &Path) {
    let table = |name: &str| rows(&fs::read_to_string(place.join(name)).unwrap());
    let samples = table("samples.jsonl");
    let of_the_last = |set: &str| -> Vec<(u64, u64)> {
        let rows = samples.iter().filter(|row| row["step"] == 6 && row["set"] == set);
        let number = |row: &Value, key: &str| row[key].as_u64().unwrap();
        rows.map(|row| (number(row, "position"), number(row, "attempt"))).collect()
    };
    assert_eq!(of_the_last("sums"), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(of_the_last("held-out"), [(0, 0), (1, 0)]);
    assert!(samples.iter().all(|row| row["prompt_tokens"].as_u64().unwrap() > 0), "{samples:?}");
    let scores = table("scores.jsonl");
    let mut sums = scores.iter().filter(|row| row["set"] == "sums" && row["metric"] == "numeric");
    assert!(sums.clone().count() == 3 && sums.all(|row| row["value"].is_number()), "{scores:?}");
    assert!(scores.iter().any(|row| row["set"] == "held-out" && row["metric"] == "loss"));
}

/// The model of the goldens in every type that the counterpart checks.
fn gguf_files(place: &Path) {
    let name = model("qwen3");
    let weights = place.join("weights");
    fs::create_dir(&weights).unwrap();
    let from = Path::new(&name).join("model.safetensors");
    fs::copy(from, weights.join("model.safetensors")).unwrap();
    for kind in ["f32", "f16", "bf16", "q8_0"] {
        let file = place.join(format!("model-{kind}.gguf"));
        let told =
            ok(&["export", "gguf", text_of(&file), "--model", &name, "--type", kind, "--json"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["bytes"], file.metadata().unwrap().len());
        // Rows of 144 inputs do not divide into blocks of 32.
        let widened = if kind == "q8_0" { 2 } else { 0 };
        assert_eq!((&told["type"], &told["widened"]), (&kind.into(), &widened.into()));
    }
    let there = text_of(&place.join("model-f32.gguf")).to_owned();
    assert!(fails(2, &["export", "gguf", &there, "--model", &name]).contains("there already"));
}

/// Has Python's own packages read everything; says so where there are none.
fn counterparts(place: &Path) {
    let python = std::env::var("CHANDLER_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counterparts/check.py");
    match Command::new(&python).arg(script).arg(place).output() {
        Err(error) => skipped(&format!("{python}: {error}")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}{errors}");
            eprint!("{said}");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The whole records of the only event file in a folder, by the lengths before them.
fn event_records(folder: &Path) -> Vec<Vec<u8>> {
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = fs::read(&files[0]).unwrap();
    let (mut records, mut rest) = (vec![], bytes.as_slice());
    while let Some((head, more)) = rest.split_at_checked(12) {
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        let Some((record, more)) = more.split_at_checked(length) else { break };
        records.push(record.to_vec());
        rest = &more[4.min(more.len())..];
    }
    records
}

#[test]
fn what_a_killed_run_wrote_for_tensorboard_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let data = goldens().join("data/chat.jsonl");
    let out = folder.path().join("out");
    let metrics = folder.path().join("metrics.jsonl");
    let mut child = chandler()
        .args(["train", "--model", &model("qwen3"), "--data", text_of(&data)])
        .args(["--output", text_of(&out), "--metrics", text_of(&metrics)])
        .args(["--set", "train.max_steps=100000", "--set", "log.tensorboard=true"])
        .args(["--set", "eval.eval_steps=0", "--set", "data.max_length=160"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lines = || fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    while lines() < 20 {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let runs = out.join("runs");
    let start = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    // A step's event stands in the file before its line does.
    assert!(event_records(&start).len() > lines());
}

#[test]
fn a_parquet_file_has_the_rows_of_its_json_lines() {
    let (json, table) = (goldens().join("data/chat.jsonl"), fixture("chat.parquet"));
    let folder = tempfile::tempdir().unwrap();
    // The name does not matter.
    let renamed = folder.path().join("chat.jsonl");
    fs::copy(&table, &renamed).unwrap();
    let preview =
        |path: &Path| ok(&["data", "preview", text_of(path), "--model", &model("qwen3"), "--json"]);
    let expected = preview(&json);
    assert!(expected.lines().count() > 1);
    assert_eq!(preview(&table), expected);
    assert_eq!(preview(&renamed), expected);
    let eval = |path: &Path| -> Value {
        let limits = ["--set", "eval.samples=1", "--set", "eval.max_new_tokens=3"];
        let args = ["eval", "--model", &model("qwen3"), "--data", text_of(path), "--json"];
        serde_json::from_str(&ok(&[&args, &limits[..]].concat())).unwrap()
    };
    assert_eq!(eval(&table)["loss"], eval(&json)["loss"]);
}

#[test]
fn a_damaged_parquet_file_and_one_that_swells_are_named_and_the_command_lives() {
    let folder = tempfile::tempdir().unwrap();
    let preview = |path: &Path, extra: &[&str]| {
        let name = model("qwen3");
        watched(&[&["data", "preview", text_of(path), "--model", &name], extra].concat())
    };
    let torn = folder.path().join("torn.parquet");
    let whole = fs::read(fixture("records-zstd.parquet")).unwrap();
    put(&torn, &whole[..whole.len() / 2]);
    let seen = preview(&torn, &[]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("torn.parquet is not a sound Parquet file"), "{}", seen.said);
    assert!(seen.said.contains("hint: "), "{}", seen.said);

    let mut bytes = whole.clone();
    let middle = whole.len() / 4;
    bytes[middle..middle + 64].fill(0xa5);
    put(&torn, &bytes);
    let seen = preview(&torn, &["--set", "data.on_bad_line=skip"]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("row group "), "{}", seen.said);

    // Half a gibibyte in seventeen kilobytes: too long a row where there is memory for it, and
    // the end of the reading process where there is not.
    let bomb = fixture("bomb.parquet");
    let seen = preview(&bomb, &[]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("longer than"), "{}", seen.said);
    let seen = preview(&bomb, &["--set", "limits.worker_memory=256MiB"]);
    assert_eq!(seen.code, Some(4), "{}", seen.said);
    assert!(seen.said.contains("bomb.parquet"), "{}", seen.said);
    assert!(seen.own_peak_bytes < 400 << 20, "{} bytes", seen.own_peak_bytes);
}

#[test]
fn an_adapter_leaves_its_checkpoint_as_the_run_wrote_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let data = goldens().join("data/chat.jsonl");
    let name = model("qwen3");
    let lora = ["--set", "lora.r=4", "--set", "lora.lora_alpha=8"];
    let train = ["train", "--model", &name, "--data", text_of(&data), "--output", text_of(&out)];
    let quick = ["--set", "train.max_steps=3", "--set", "train.save_steps=3"];
    let quick = [&quick[..], &["--set", "eval.eval_steps=0"]].concat();
    ok(&[&train[..], &lora, &quick].concat());
    let adapter = folder.path().join("adapter");
    let checkpoint = out.join("checkpoint-3");
    let export = ["export", "adapter", text_of(&adapter), "--checkpoint", text_of(&checkpoint)];
    assert!(fails(2, &export).contains("not known"));
    ok(&[&export[..], &["--base", &name], &lora].concat());
    let config = |folder: &Path| fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    assert_eq!(config(&adapter), config(&out));
    let tensors = |folder: &Path| {
        let path = folder.join("adapter_model.safetensors");
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        let values = |tensor: candle_core::Tensor| -> Vec<f32> {
            tensor.flatten_all().unwrap().to_vec1().unwrap()
        };
        let named = tensors.into_iter().map(|(name, tensor)| (name, values(tensor)));
        named.collect::<std::collections::BTreeMap<_, _>>()
    };
    assert!(tensors(&adapter).len() > 20 && tensors(&adapter) == tensors(&out));
    let again = folder.path().join("again");
    let export = ["export", "adapter", text_of(&again), "--checkpoint", text_of(&checkpoint)];
    let refused = fails(2, &[&export[..], &["--base", &name]].concat());
    assert!(refused.contains("rank 4") && refused.contains("lora.r is 0"), "{refused}");

    let state = learned(folder.path(), &lora);
    let of_the_daemon = folder.path().join("of-the-daemon");
    let told = ok(&["export", "adapter", text_of(&of_the_daemon), "--dir", &state, "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["step"], &told["r"]), (&6.into(), &4.into()));
    assert_eq!(told["base"], name);
    // The newest model is the base with the adapter merged.
    let merged = folder.path().join("merged");
    ok(&[
        "export",
        "model",
        text_of(&merged),
        "--model",
        &name,
        "--adapter",
        text_of(&of_the_daemon),
        "--dtype",
        "f32",
    ]);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&merged) == weights(&Path::new(&state).join("model")));
}

#[test]
fn a_push_without_a_token_or_a_model_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let push = |extra: &[&str]| {
        let output = chandler()
            .args(["push", "owner/model"])
            .args(extra)
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("HF_TOKEN")
            .env_remove("HF_TOKEN_PATH")
            .env_remove("HF_HOME")
            .env_remove("XDG_CACHE_HOME")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = push(&[]);
    assert!(said.contains("has no file of a model") && said.contains("--model"), "{said}");
    let said = push(&["--model", &model("qwen3")]);
    assert!(said.contains("no token") && said.contains("HF_TOKEN"), "{said}");
}

#[test]
fn the_old_form_of_export_still_writes_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let name = model("qwen3");
    assert_eq!(ok(&["export", text_of(&old), "--model", &name]).trim(), text_of(&old));
    ok(&["export", "model", text_of(&new), "--model", &name]);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&old) == weights(&new));
    assert!(!run(&["export"]).status.success());

    // An empty folder is taken, one with anything in it is left alone.
    let (empty, used) = (folder.path().join("empty"), folder.path().join("used"));
    fs::create_dir(&empty).unwrap();
    ok(&["export", "model", text_of(&empty), "--model", &name]);
    assert!(weights(&empty) == weights(&new) && !empty.join("manifest.json").exists());
    fs::create_dir(&used).unwrap();
    put(&used.join("notes.txt"), "mine");
    let refused = fails(2, &["export", "model", text_of(&used), "--model", &name]);
    assert!(refused.contains("no empty folder"), "{refused}");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}
