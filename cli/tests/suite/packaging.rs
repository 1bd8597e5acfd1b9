//! What lies in packaging/ is what those take who are to read it: systemd, Kubernetes, Docker, dpkg.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::python::{python_with, skipped};
use crate::support::{put, text_of};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file).canonicalize().unwrap()
}

/// What a program says; `None` where it is not here, which is said.
fn said(program: &Path, args: &[&str]) -> Option<(bool, String)> {
    // systemd wants one of a user whose unit it looks at.
    let runtime = std::env::temp_dir();
    match Command::new(program).args(args).env("XDG_RUNTIME_DIR", runtime).output() {
        Err(_) => {
            skipped(&format!("there is no {}", program.display()));
            None
        }
        Ok(output) => {
            let text = [&output.stdout[..], &output.stderr[..]].concat();
            Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

/// A program that is installed with the counterparts, which have this package, too.
fn counterpart(program: &str) -> Option<PathBuf> {
    let python = python_with("kubernetes_validate")?;
    Some(Path::new(&python).with_file_name(program))
}

#[test]
fn systemd_takes_the_units_and_finds_them_confined() {
    let folder = tempfile::tempdir().unwrap();
    for (name, scope) in [("chandler.service", "--system"), ("chandler.user.service", "--user")] {
        let unit = fs::read_to_string(packaging(name)).unwrap();
        // The binary need not be installed where the tests run.
        let here = unit.replace("/usr/bin/chandler", env!("CARGO_BIN_EXE_chandler"));
        assert_ne!(here, unit);
        let place = folder.path().join("chandler.service");
        put(&place, here);
        let analyze = Path::new("systemd-analyze");
        let Some((is_fine, text)) = said(analyze, &[scope, "verify", text_of(&place)]) else {
            return;
        };
        let about_it: Vec<&str> =
            text.lines().filter(|line| line.contains("chandler.service")).collect();
        assert!(is_fine && about_it.is_empty(), "{name}: {text}");
        if scope == "--system" {
            // 0 is confined wholly, 10 not at all; what a GPU needs stays open.
            let args = ["security", "--offline=true", "--threshold=25", text_of(&place)];
            let (is_fine, text) = said(analyze, &args).unwrap();
            assert!(is_fine, "{text}");
        }
    }
}

#[test]
fn kubernetes_takes_the_manifest() {
    let Some(validate) = counterpart("kubernetes-validate") else { return };
    let manifest = packaging("kubernetes.yaml");
    let (is_fine, text) = said(&validate, &["--strict", text_of(&manifest)]).unwrap();
    assert!(is_fine && text.matches(" passed ").count() == 2, "{text}");
    // It does tell.
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    put(&wrong, fs::read_to_string(manifest).unwrap().replace("replicas: 1", "replicas: one"));
    let (is_fine, text) = said(&validate, &["--strict", text_of(&wrong)]).unwrap();
    assert!(!is_fine, "{text}");
}

#[test]
fn hadolint_has_nothing_to_say_about_the_dockerfile() {
    let Some(hadolint) = counterpart("hadolint") else { return };
    let dockerfile = packaging("Dockerfile");
    if let Some((is_fine, text)) = said(&hadolint, &[text_of(&dockerfile)]) {
        assert!(is_fine && text.is_empty(), "{text}");
    }
}
