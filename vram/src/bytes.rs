//! Sizes as people read and write them.

use std::fmt;
use std::str::FromStr;

const UNITS: [(&str, f64); 4] =
    [("TiB", 1_099_511_627_776.0), ("GiB", 1_073_741_824.0), ("MiB", 1_048_576.0), ("KiB", 1024.0)];

/// A number of bytes, shown with a binary unit: `1.50 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.0 as f64;
        let text = match UNITS.iter().find(|(_, size)| bytes >= *size) {
            Some((unit, size)) => format!("{:.2} {unit}", bytes / size),
            None => format!("{} B", self.0),
        };
        f.pad(&text)
    }
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size such as 24GiB, 500 MB or 1048576")]
pub struct ParseBytesError {
    /// The text.
    pub text: String,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Units are KiB to TiB, KB to TB (thousands), or none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseBytesError { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = trimmed.split_at(digits.unwrap_or(trimmed.len()));
        let number: f64 = number.parse().map_err(|_| error())?;
        let unit = unit.trim().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            other => {
                let known = UNITS.iter().find(|(name, _)| name.to_ascii_lowercase() == other);
                known.ok_or_else(error)?.1
            }
        };
        let bytes = number * factor;
        if bytes < u64::MAX as f64 { Ok(Self(bytes.round() as u64)) } else { Err(error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_and_read() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.50 KiB"),
            (25_372_000_000, "23.63 GiB"),
            (3 << 40, "3.00 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (text, bytes) in
            [("24GiB", 24 << 30), (" 1.5 gib ", 3 << 29), ("500 MB", 500_000_000), ("7", 7)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        for text in ["", "GiB", "-1", "1.2.3", "12 parsecs", "99999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
