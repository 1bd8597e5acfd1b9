//! Running the binary, and the goldens.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens").canonicalize().unwrap()
}

pub(crate) fn model(name: &str) -> String {
    goldens().join("models").join(name).to_str().unwrap().to_owned()
}

pub(crate) fn golden(name: &str, file: &str) -> Value {
    let path = goldens().join("goldens").join(name).join(file);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The binary without the user's own settings.
pub(crate) fn chandler() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chandler"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CHANDLER_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    chandler().args(args).output().unwrap()
}

/// Standard output of a run that must succeed.
pub(crate) fn ok(args: &[&str]) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {:?}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that must end with `code`, and must say what to do.
pub(crate) fn fails(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{errors}");
    assert!(errors.contains("hint: "), "{args:?}\n{errors}");
    errors
}

pub(crate) fn put(path: &Path, text: impl AsRef<[u8]>) {
    File::create(path).unwrap().write_all(text.as_ref()).unwrap();
}

pub(crate) fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The steps of a metrics file.
pub(crate) fn metrics(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The bits of loss and gradient norm of each step.
pub(crate) fn bits(rows: &[Value]) -> Vec<(u64, u64, u64)> {
    let float = |value: &Value| value.as_f64().unwrap().to_bits();
    rows.iter()
        .map(|row| (row["step"].as_u64().unwrap(), float(&row["loss"]), float(&row["grad_norm"])))
        .collect()
}

/// `--set` arguments for a golden's hyperparameters.
pub(crate) fn settings(hp: &Value) -> Vec<String> {
    let mut all = vec![
        "data.shuffle=false".to_owned(),
        "eval.eval_steps=0".to_owned(),
        format!("data.max_length={}", hp["max_length"]),
    ];
    for (key, value) in hp.as_object().unwrap() {
        if key != "max_length" && key != "seed" {
            all.push(format!("train.{key}={}", value.to_string().trim_matches('"')));
        }
    }
    all.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
}
