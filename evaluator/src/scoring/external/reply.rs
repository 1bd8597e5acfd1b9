//! What a scoring program says.

use serde_json::Value;

use super::error::ExternalError;

/// What a program thinks of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ExternalScore {
    /// From 0 to 1; `None` where it has no opinion.
    pub score: Option<f64>,
    /// What it has to say about it.
    pub note: Option<String>,
}

/// Reads a line: a number, `null`, or an object with a `score` and perhaps a `note`.
pub(super) fn read(program: &str, line: &[u8]) -> Result<ExternalScore, ExternalError> {
    let garbled = |reason: String| ExternalError::Garbled { program: program.to_owned(), reason };
    let text = std::str::from_utf8(line).map_err(|error| garbled(error.to_string()))?.trim();
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        // What other languages print for what JSON does not have.
        Err(error) => match text.parse::<f64>() {
            Ok(value) => return Err(not_a_score(program, value)),
            Err(_) => return Err(garbled(error.to_string())),
        },
    };
    let (score, note) = match value {
        Value::Object(mut reply) => {
            let score = reply.remove("score");
            let score = score.ok_or_else(|| garbled("it has no score".to_owned()))?;
            (score, reply.remove("note"))
        }
        score => (score, None),
    };
    let score = match score {
        Value::Null => None,
        Value::Number(number) => {
            let score = number.as_f64().unwrap_or(f64::NAN);
            let fits = (0.0..=1.0).contains(&score);
            Some(score)
                .filter(|_| fits)
                .map_or_else(|| Err(not_a_score(program, score)), |s| Ok(Some(s)))?
        }
        _ => return Err(garbled("its score is no number".to_owned())),
    };
    let note = match note {
        None | Some(Value::Null) => None,
        Some(Value::String(note)) => Some(note),
        Some(_) => return Err(garbled("its note is no text".to_owned())),
    };
    Ok(ExternalScore { score, note })
}

fn not_a_score(program: &str, value: f64) -> ExternalError {
    ExternalError::NotAScore { program: program.to_owned(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_objects_are_replies() {
        let score = |line: &str| {
            let ExternalScore { score, note } = read("judge", line.as_bytes()).unwrap();
            (score, note)
        };
        assert_eq!(score("0.5\n"), (Some(0.5), None));
        assert_eq!(score(" 1 \r\n"), (Some(1.0), None));
        assert_eq!(score("null"), (None, None));
        let note = || Some("good".to_owned());
        assert_eq!(score(r#"{"score": 0, "note": "good", "more": []}"#), (Some(0.0), note()));
        assert_eq!(score(r#"{"score": null, "note": null}"#), (None, None));
    }

    #[test]
    fn all_else_is_an_error_that_repeats_nothing() {
        let not_scores = ["NaN", "nan", "inf", "-0.1", "1.1", "1e999", r#"{"score": 2}"#, ".5"];
        for line in not_scores {
            let error = read("judge", line.as_bytes()).unwrap_err();
            assert!(matches!(error, ExternalError::NotAScore { .. }), "{line}: {error}");
        }
        let garbled = [
            "",
            "secret",
            "true",
            "[0.5]",
            "\"0.5\"",
            "{}",
            r#"{"score": "secret"}"#,
            "0.5 secret",
        ];
        for line in garbled {
            let error = read("judge", line.as_bytes()).unwrap_err();
            assert!(matches!(error, ExternalError::Garbled { .. }), "{line}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(read("judge", b"\xff").is_err());
        assert!(read("judge", br#"{"score": 1, "note": 1}"#).is_err());
    }
}
