//! The `openai` package, where a Python has it.

use std::path::Path;
use std::process::Command;

use super::client::{Server, patient_model};
use crate::python::python_with;
use crate::support::text_of;

#[test]
fn the_client_of_openai_gets_its_answers() {
    let Some(python) = python_with("openai") else { return };
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
