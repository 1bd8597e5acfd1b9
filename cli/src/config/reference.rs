//! The configuration as documents: the Markdown reference and the commented `chandler.toml`.

use std::fmt::Write;

use super::sections::{Config, SECTIONS};

/// The reference in Markdown: every key with its type, default and meaning.
pub fn markdown() -> String {
    let defaults = Defaults::new();
    let mut out = String::from(
        "# Configuration reference\n\n\
         Values are taken from the defaults, then `chandler.toml`, then environment variables \
         (`CHANDLER_TRAIN__LEARNING_RATE`), then flags, then `--set section.key=value`; the later \
         ones win. An optional key is unset with the word `none` in a variable or `--set`.\n",
    );
    for section in SECTIONS {
        let about = one_line(section.about);
        let _ = write!(out, "\n## `[{}]`\n\n{about}\n\n", section.path);
        out.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let default = defaults.toml(&key.path()).unwrap_or_else(|| "unset".to_owned());
            let expected = key.expected().replace('|', "\\|");
            let _ = writeln!(
                out,
                "| `{}` | {expected} | `{default}` | {} |",
                key.name,
                key.meaning().replace('|', "\\|"),
            );
        }
    }
    out
}

/// The reference for programs: every key with its type, default and meaning, in order.
pub fn list() -> serde_json::Value {
    let defaults = Defaults::new();
    let keys = SECTIONS.iter().flat_map(|section| section.keys).map(|key| {
        serde_json::json!({
            "key": key.path(),
            "type": key.expected(),
            "default": defaults.json(&key.path()),
            "meaning": key.meaning(),
        })
    });
    keys.collect()
}

/// A `chandler.toml` that sets nothing and explains everything, with `model` filled in if given.
pub fn template(model: Option<&str>) -> String {
    let defaults = Defaults::new();
    let mut out = String::from(
        "# chandler configuration. Every key stands here with its default; take the `#` away and\n\
         # change the value. `chandler config show` prints what is in force and why.\n",
    );
    for section in SECTIONS {
        let _ = write!(out, "\n# {}\n[{}]\n", one_line(section.about), section.path);
        for key in section.keys {
            let path = key.path();
            let _ = writeln!(out, "# {} ({})", key.meaning(), key.expected());
            match (path.as_str(), model) {
                ("model.path", Some(model)) => {
                    let _ = writeln!(out, "path = {}", toml::Value::String(model.to_owned()));
                }
                _ => match defaults.toml(&path) {
                    Some(default) => {
                        let _ = writeln!(out, "#{} = {default}", key.name);
                    }
                    None => {
                        let _ = writeln!(out, "#{} =", key.name);
                    }
                },
            }
        }
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Defaults(serde_json::Value);

impl Defaults {
    fn new() -> Self {
        Self(serde_json::to_value(Config::default()).unwrap_or(serde_json::Value::Null))
    }

    /// The default, or nothing where the key is unset by default.
    fn json(&self, path: &str) -> Option<&serde_json::Value> {
        let value = self.0.pointer(&format!("/{}", path.replace('.', "/")))?;
        (!value.is_null()).then_some(value)
    }

    /// As [`json`](Self::json), as it would be written in TOML.
    fn toml(&self, path: &str) -> Option<String> {
        self.json(path).map(as_toml)
    }
}

/// A JSON value as it would be written in TOML.
pub fn as_toml(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "unset".to_owned(),
        serde_json::Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => short_float(float),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// A float as people write it: `2e-5` and `0.999`, never `0.00002`.
fn short_float(float: f64) -> String {
    if float != 0.0 && (float.abs() < 1e-3 || float.abs() >= 1e7) {
        format!("{float:e}")
    } else {
        format!("{float:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::{ConfigSources, ResolvedConfig};
    use super::*;

    #[test]
    fn floats_are_written_short() {
        assert_eq!(short_float(2e-5), "2e-5");
        assert_eq!(short_float(0.999), "0.999");
        assert_eq!(short_float(3.0), "3.0");
    }

    #[test]
    fn the_template_with_every_default_uncommented_is_the_default() {
        let uncommented: String = template(None)
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') && !rest.ends_with('=') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config: Config = toml::from_str(&uncommented).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn the_template_as_written_loads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chandler.toml");
        write_text(&path, &template(Some("org/model")));
        let sources = ConfigSources { file: Some(path), ..ConfigSources::default() };
        let resolved = ResolvedConfig::load(&sources).unwrap();
        assert_eq!(resolved.config.model.path.unwrap().0, "org/model");
    }

    fn write_text(path: &std::path::Path, text: &str) {
        use std::io::Write as _;
        std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_reference_has_every_key() {
        let (text, list) = (markdown(), list());
        for key in super::super::sections::keys() {
            let listed = list.as_array().unwrap().iter().any(|entry| entry["key"] == *key.path());
            assert!(listed, "{}", key.path());
            assert!(text.contains(&format!("| `{}` |", key.name)), "{}", key.path());
        }
        assert!(text.contains("| `learning_rate` | number, at least 0 | `2e-5` |"));
    }
}
