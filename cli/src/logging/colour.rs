//! Whether colours are wanted: `NO_COLOR`, `CLICOLOR_FORCE` and `CLICOLOR`, as other programs read
//! them.

use std::ffi::OsString;

/// Whether to colour what goes to a terminal, or to something else.
///
/// `NO_COLOR` that is not empty forbids it (<https://no-color.org>), then `CLICOLOR_FORCE` that is
/// not `0` demands it; else there are colours on a terminal, unless `CLICOLOR` is `0` or `TERM` is
/// `dumb` (<https://bixense.com/clicolors>).
pub fn colour_is_wanted(is_terminal: bool) -> bool {
    wanted(is_terminal, |name| std::env::var_os(name))
}

/// Whether the terminal can neither move its cursor nor show colours.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

fn wanted(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    let switched_off = set("CLICOLOR").is_some_and(|value| value == "0");
    is_terminal && !switched_off && set("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_in_their_order() {
        let with = |is_terminal, variables: &[(&str, &str)]| {
            wanted(is_terminal, |name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        for (is_terminal, variables, expected) in [
            (true, &[][..], true),
            (false, &[], false),
            (true, &[("NO_COLOR", "1")], false),
            (true, &[("NO_COLOR", "")], true),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
            (true, &[("CLICOLOR", "0")], false),
            (false, &[("CLICOLOR", "1")], false),
            (true, &[("TERM", "dumb")], false),
            (true, &[("TERM", "xterm")], true),
        ] {
            assert_eq!(with(is_terminal, variables), expected, "{is_terminal} {variables:?}");
        }
    }
}
