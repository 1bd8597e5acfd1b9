//! Numbers in a text, and whether they are close enough.

use serde::{Deserialize, Serialize};

use super::error::ScoreError;
use super::scorer::Which;

/// Whether a number of the answer is that of the reference, within
/// `max(tolerance, relative_tolerance · |reference|)`.
///
/// Numbers may have thousands separators (`1,234.5`), an exponent (`6.02e23`), a sign and a percent
/// sign; digits that follow a letter are none. Where one side alone has a percent sign, it may have
/// meant either: `50%` fits 50 and 0.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Numeric {
    /// Difference that is allowed.
    pub tolerance: f64,
    /// Difference that is allowed, as a share of the reference.
    pub relative_tolerance: f64,
    /// Which number of the answer counts; of the reference, it is the last.
    pub which: Which,
    /// The answer's number follows the last of these; so does the reference's, if it has one.
    /// GSM8K's is `####`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker: Option<String>,
}

impl Default for Numeric {
    fn default() -> Self {
        Self { tolerance: 0.0, relative_tolerance: 1e-9, which: Which::Last, marker: None }
    }
}

/// A number as it was written.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Written {
    value: f64,
    percent: bool,
}

impl Numeric {
    pub(super) const SETTINGS: &[&str] = &["tolerance", "relative_tolerance", "which", "marker"];

    pub(super) fn fits(&self, answer: &str, reference: &str) -> Result<bool, ScoreError> {
        let expected = self.after_marker(reference).unwrap_or(reference);
        let expected = Numbers::of(expected).last().filter(|number| number.value.is_finite());
        let expected = expected.ok_or(ScoreError::ReferenceNumber)?;
        let Some(answer) = self.after_marker(answer) else { return Ok(false) };
        let mut numbers = Numbers::of(answer);
        let found = match self.which {
            // After a marker, the number is the next one.
            Which::Last if self.marker.is_none() => numbers.last(),
            Which::First | Which::Last => numbers.next(),
        };
        Ok(found.is_some_and(|found| self.close(found, expected)))
    }

    fn after_marker<'a>(&self, text: &'a str) -> Option<&'a str> {
        match &self.marker {
            Some(marker) => text.rfind(marker.as_str()).map(|at| &text[at + marker.len()..]),
            None => Some(text),
        }
    }

    fn close(&self, found: Written, expected: Written) -> bool {
        let near = |found: f64, expected: f64| {
            let allowed = self.tolerance.max(self.relative_tolerance * expected.abs());
            found.is_finite() && (found - expected).abs() <= allowed
        };
        let (found, expected, percent) =
            (found.value, expected.value, (found.percent, expected.percent));
        near(found, expected)
            || percent == (true, false) && near(found / 100.0, expected)
            || percent == (false, true) && near(found, expected / 100.0)
    }
}

/// The numbers of a text, one after another, in one pass.
struct Numbers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Numbers<'a> {
    fn of(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), at: 0 }
    }

    fn is_digit(&self, at: usize) -> bool {
        self.bytes.get(at).is_some_and(u8::is_ascii_digit)
    }

    /// Where the digits from `at` on end.
    fn digits(&self, at: usize) -> usize {
        at + self.bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count()
    }

    /// Whether a number begins here.
    fn begins(&self, at: usize) -> bool {
        let before = at.checked_sub(1).map(|at| self.bytes[at]);
        match self.bytes[at] {
            b'0'..=b'9' => true,
            b'.' => {
                self.is_digit(at + 1) && before.is_none_or(|byte| !byte.is_ascii_alphanumeric())
            }
            _ => false,
        }
    }

    /// Where a number without its sign ends that begins here.
    fn end(&self, start: usize) -> usize {
        let mut at = self.digits(start);
        if (1..=3).contains(&(at - start)) {
            while self.bytes.get(at) == Some(&b',') && self.digits(at + 1) == at + 4 {
                at += 4;
            }
        }
        if self.bytes.get(at) == Some(&b'.') && self.is_digit(at + 1) {
            at = self.digits(at + 1);
        }
        if matches!(self.bytes.get(at), Some(b'e' | b'E')) {
            let signed = matches!(self.bytes.get(at + 1), Some(b'+' | b'-'));
            let digits = at + 1 + usize::from(signed);
            if self.is_digit(digits) {
                at = self.digits(digits);
            }
        }
        at
    }

    /// Whether a minus stands before the number that begins here, a currency sign aside.
    fn is_negative(&self, start: usize) -> bool {
        let mut before = &self.bytes[..start];
        for currency in ["$", "€", "£", "¥"] {
            before = before.strip_suffix(currency.as_bytes()).unwrap_or(before);
        }
        let before = before.strip_suffix(b"-").or_else(|| before.strip_suffix("−".as_bytes()));
        // Between two numbers or after a word it is a dash.
        let dash = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b')' | b']');
        before.is_some_and(|before| !before.last().is_some_and(dash))
    }

    fn is_percent(&self, end: usize) -> bool {
        let rest = &self.bytes[end..];
        [&b"%"[..], b" %", b"\\%"].iter().any(|sign| rest.starts_with(sign))
    }
}

impl Iterator for Numbers<'_> {
    type Item = Written;

    fn next(&mut self) -> Option<Written> {
        while self.at < self.bytes.len() {
            let start = self.at;
            if !self.begins(start) {
                self.at += 1;
                continue;
            }
            let before = start.checked_sub(1).map(|at| self.bytes[at]);
            if before.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_') {
                self.at = self.digits(start);
                continue;
            }
            self.at = self.end(start);
            let digits = self.bytes[start..self.at].iter().filter(|byte| **byte != b',');
            let digits: String = digits.map(|byte| char::from(*byte)).collect();
            if let Ok(value) = digits.parse::<f64>() {
                let value = if self.is_negative(start) { -value } else { value };
                return Some(Written { value, percent: self.is_percent(self.at) });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        let cases: [(&str, &[f64]); 18] = [
            ("42", &[42.0]),
            ("It is 42.", &[42.0]),
            ("1,234,567.5 km", &[1_234_567.5]),
            ("1,2,3", &[1.0, 2.0, 3.0]),
            ("1234,567", &[1234.0, 567.0]),
            ("12,3456", &[12.0, 3456.0]),
            ("-5, −6, - 7", &[-5.0, -6.0, 7.0]),
            ("3-5 and x-2", &[3.0, 5.0, 2.0]),
            ("-$1,000 or $-3 or €4", &[-1000.0, -3.0, 4.0]),
            ("6.02e23 and 1E-3, 2e", &[6.02e23, 1e-3, 2.0]),
            (".5 and 0.25", &[0.5, 0.25]),
            ("H2O, 5km", &[5.0]),
            ("v_1 = 7", &[7.0]),
            ("答案是42。", &[42.0]),
            ("50% 60 %", &[50.0, 60.0]),
            ("1e999", &[f64::INFINITY]),
            ("none", &[]),
            ("... . -", &[]),
        ];
        for (text, expected) in cases {
            let found: Vec<f64> = Numbers::of(text).map(|number| number.value).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn the_right_number_is_compared() {
        let last = Numeric::default();
        let first = Numeric { which: Which::First, ..Numeric::default() };
        let marked = Numeric { marker: Some("####".to_owned()), ..Numeric::default() };
        let fits = |rule: &Numeric, answer, reference| rule.fits(answer, reference).unwrap();
        assert!(fits(&last, "6 times 7 is 42", "42") && !fits(&last, "42 is 6 times 7", "42"));
        assert!(fits(&first, "42 is 6 times 7", "#42"));
        assert!(fits(&marked, "6 × 7 #### 42 (or 43)", "<<6*7=42>> so\n#### 42"));
        assert!(!fits(&marked, "6 × 7 = 42", "42"));
        assert!(!fits(&last, "", "42") && !fits(&last, "1e999", "42"));
        assert!(last.fits("42", "forty-two").is_err() && last.fits("42", "1e999").is_err());
    }

    #[test]
    fn differences_are_allowed_as_far_as_they_are_set() {
        let close = |tolerance, relative_tolerance, answer: f64, reference: f64| {
            let rule = Numeric { tolerance, relative_tolerance, ..Numeric::default() };
            rule.fits(&answer.to_string(), &reference.to_string()).unwrap()
        };
        assert!(close(0.5, 0.0, 10.5, 10.0) && !close(0.25, 0.0, 10.5, 10.0));
        assert!(close(0.0, 0.1, -220.0, -200.0) && !close(0.0, 0.1, -221.0, -200.0));
        assert!(close(0.0, 0.0, 0.1, 0.1) && !close(0.0, 0.0, 0.1, 0.2));
    }

    #[test]
    fn a_percent_sign_on_one_side_may_mean_either() {
        let fits = |answer, reference| Numeric::default().fits(answer, reference).unwrap();
        assert!(fits("50%", "50") && fits("50%", "0.5") && fits("50", "50%") && fits("0.5", "50%"));
        assert!(fits(r"12.5\%", "12.5 %") && !fits("0.5%", "50%") && !fits("0.5", "50"));
    }
}
