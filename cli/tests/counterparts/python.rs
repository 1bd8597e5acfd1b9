//! A Python that has the programs for whom chandler writes.

use std::io::Write;
use std::process::Command;

/// `CHANDLER_TEST_PYTHON`, which must have the package, or the `python3` of the path if it has it; what
/// is skipped without is said.
pub(crate) fn python_with(package: &str) -> Option<String> {
    python_of("CHANDLER_TEST_PYTHON", package)
}

/// The same by another variable.
pub(crate) fn python_of(variable: &str, package: &str) -> Option<String> {
    let named = std::env::var(variable).ok();
    let python = named.clone().unwrap_or_else(|| "python3".to_owned());
    let has_it = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    let has_it = has_it.is_ok_and(|output| output.status.success());
    assert!(has_it || named.is_none(), "{python} has no package {package}");
    if !has_it {
        skipped(&format!("no Python with the package {package} ({variable})"));
    }
    has_it.then_some(python)
}

/// Says that something is not looked at here. The test passes, and what is printed in one that does is
/// shown to nobody; what is written is.
pub(crate) fn skipped(what: &str) {
    std::io::stderr().write_all(format!("SKIPPED: {what}\n").as_bytes()).unwrap();
}
