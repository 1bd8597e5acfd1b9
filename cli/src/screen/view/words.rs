//! Words on lines: cut to a width, broken at one, and times of day.

use jiff::tz::TimeZone;
use ratatui::text::Line;

use crate::visible::visible;

/// Columns that a text takes.
fn columns_of(text: &str) -> usize {
    Line::raw(text).width()
}

/// As much of a text as fits into so many columns, with a mark where it was cut.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if columns_of(text) <= columns {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += columns_of(c.encode_utf8(&mut [0; 4]));
        if used > columns {
            break;
        }
        shown.push(c);
    }
    if columns > 0 { shown + "…" } else { shown }
}

/// A text of strangers on lines of so many columns; empty lines at its ends are left out.
pub(super) fn broken(text: &str, columns: usize) -> Vec<String> {
    let shown = visible(text.trim_matches('\n')).replace('\t', "    ");
    let mut lines = Vec::new();
    for line in shown.lines() {
        let mut rest = String::new();
        let mut used = 0;
        for c in line.chars() {
            let width = columns_of(c.encode_utf8(&mut [0; 4]));
            if used + width > columns.max(2) {
                lines.push(std::mem::take(&mut rest));
                used = 0;
            }
            rest.push(c);
            used += width;
        }
        lines.push(rest);
    }
    lines
}

/// The time of day of a stored time, with its date where `dated`.
pub(super) fn clock(stored: &str, zone: &TimeZone, dated: bool) -> String {
    let format = if dated { "%Y-%m-%d %H:%M:%S" } else { "%H:%M:%S" };
    stored.parse::<jiff::Timestamp>().map_or_else(
        |_| "unknown".to_owned(),
        |time| time.to_zoned_datetime(zone.clone()).strftime(format).to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("北京北京", 5), "北京…");
        assert_eq!(cut("abc", 0), "");
        assert_eq!(broken("\nab北京\n\nc\td\n", 4), ["ab北", "京", "", "c   ", " d"]);
        assert_eq!(broken("a\u{1b}[2J", 20), ["a\\u{1b}[2J"]);
    }

    #[test]
    fn a_time_that_is_none_is_unknown() {
        assert_eq!(clock("2026-03-01T12:00:05.7Z", &TimeZone::UTC, true), "2026-03-01 12:00:05");
        assert_eq!(clock("yesterday", &TimeZone::UTC, false), "unknown");
    }
}
