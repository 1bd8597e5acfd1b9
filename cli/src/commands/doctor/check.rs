//! What a check found, and how all of them are printed.

use chandler_vram::Bytes;
use serde::Serialize;

use crate::failure::{Failure, said_once};
use crate::output;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Ok,
    /// A fact that is neither good nor bad.
    Info,
    Warning,
    Problem,
}

/// One check.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Check {
    name: &'static str,
    pub(super) verdict: Verdict,
    pub(super) detail: String,
    pub(super) hint: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), hint: None }
    }

    pub(super) fn info(name: &'static str, detail: impl Into<String>) -> Self {
        Self { verdict: Verdict::Info, ..Self::ok(name, detail) }
    }

    pub(super) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Something that works, but not as well as it could.
    pub(super) fn warning(
        name: &'static str,
        detail: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warning, hint: Some(cure.into()), ..Self::ok(name, detail) }
    }

    /// Something that has to be mended before a run.
    pub(super) fn problem(
        name: &'static str,
        detail: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Problem, hint: Some(cure.into()), ..Self::ok(name, detail) }
    }

    /// The problem that an error is.
    pub(super) fn of_failure(name: &'static str, failure: &Failure) -> Self {
        let detail = said_once(failure.error.as_ref()).join(": ");
        Self { name, verdict: Verdict::Problem, detail, hint: failure.hint.clone() }
    }
}

/// One line for each check, and one for each cure.
pub(super) fn render(checks: &[Check]) -> String {
    let mut rows = Vec::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Info => "-",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        };
        rows.push(vec![mark.to_owned(), check.name.to_owned(), check.detail.clone()]);
        if let Some(hint) = &check.hint {
            rows.push(vec![String::new(), String::new(), format!("hint: {hint}")]);
        }
    }
    output::table(&rows)
}

/// Bytes in words.
pub(super) fn shown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cure_stands_below_what_it_cures() {
        let checks =
            [Check::ok("disk", "has room"), Check::warning("swap", "is on", "turn it off")];
        assert_eq!(
            render(&checks),
            "ok       disk  has room\nwarning  swap  is on\n               hint: turn it off\n"
        );
        let json = serde_json::to_value(&checks[1]).unwrap();
        assert_eq!(json["verdict"], "warning");
        assert_eq!(json["hint"], "turn it off");
    }
}
