//! The `openai` package, where a Python has it.

use std::path::Path;
use std::process::Command;

use super::client::{Server, patient_model};
use crate::support::text_of;

/// `CHANDLER_TEST_PYTHON`, which must have the package, or the `python3` of the path if it has it.
fn python() -> Option<String> {
    let named = std::env::var("CHANDLER_TEST_PYTHON").ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let has_it = Command::new(&python).args(["-c", "import openai"]).output();
    let has_it = has_it.is_ok_and(|output| output.status.success());
    assert!(has_it || named.is_none(), "{python} has no package openai");
    has_it.then_some(python)
}

#[test]
fn the_client_of_openai_gets_its_answers() {
    let Some(python) = python() else {
        return eprintln!("skipped: no Python with the package openai (CHANDLER_TEST_PYTHON)");
    };
    let folder = tempfile::tempdir().unwrap();
    let model = patient_model(folder.path());
    let server = Server::start(text_of(&model), &["--set", "serve.queue=0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counterparts/openai_client.py");
    let output = Command::new(python)
        .arg(script)
        .arg(format!("http://{}/v1", server.place.address))
        .arg(&server.place.token)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.ends_with("all as expected\n"), "{said}");
}
