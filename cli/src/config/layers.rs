//! The layers that lie over the defaults: file, environment, flags, `--set`.

use std::path::{Path, PathBuf};

use figment::value::{Empty, Tag, Value};
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin, Problem};
use super::keys::{Key, Kind};
use super::sections::{SECTIONS, key, keys};

/// One value that somebody set, with the place where they set it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Dotted path as written; not necessarily a key that exists.
    pub(super) path: String,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// A flag that stands for a key, such as `--model DIR` for `model.path`.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// The flag, with its dashes.
    pub flag: &'static str,
    /// The key it sets.
    pub key: &'static str,
    /// The value, as typed.
    pub value: String,
}

/// Reads a configuration file into entries.
pub(super) fn from_file(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    from_file_of("", path)
}

/// Reads a file whose keys are those of one section.
pub(super) fn from_file_of(section: &str, path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(&text, span.start)),
        message: error.message().to_owned(),
    };
    let spanned = DeTable::parse(&text).map_err(syntax)?;
    let values: toml::Table = toml::from_str(&text).map_err(syntax)?;
    let mut reader = FileReader { path, text: &text, entries: Vec::new() };
    reader.table(section, spanned.get_ref(), &values);
    Ok(reader.entries)
}

struct FileReader<'a> {
    path: &'a Path,
    text: &'a str,
    entries: Vec<Entry>,
}

impl FileReader<'_> {
    fn table(&mut self, prefix: &str, spanned: &DeTable<'_>, values: &toml::Table) {
        for (name, inner) in spanned {
            let name_text: &str = name.get_ref();
            let Some(value) = values.get(name_text) else { continue };
            let path = if prefix.is_empty() {
                name_text.to_owned()
            } else {
                format!("{prefix}.{name_text}")
            };
            match (inner.get_ref(), value) {
                (DeValue::Table(spanned), toml::Value::Table(values)) if is_section(&path) => {
                    self.table(&path, spanned, values);
                }
                _ => {
                    let line = line_of(self.text, name.span().start);
                    self.entries.push(Entry {
                        value: self.located(&path, value),
                        path,
                        origin: Origin::File { path: self.path.to_owned(), line },
                    });
                }
            }
        }
    }

    /// The value, with a relative path starting at the folder of the file.
    fn located(&self, path: &str, value: &toml::Value) -> Value {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        match (key(path).map(|key| key.kind), value) {
            (Some(Kind::Path), toml::Value::String(text)) => {
                Value::from(folder.join(text).to_string_lossy().into_owned())
            }
            (Some(Kind::ModelPath), toml::Value::String(text)) => {
                Value::from(locate_model(folder, text))
            }
            _ => to_figment(value),
        }
    }
}

/// A model given as `text` in a file of `folder`: a folder beside it, or an id of the hub.
fn locate_model(folder: &Path, text: &str) -> String {
    let beside: PathBuf = folder.join(text);
    if text.starts_with('.') || (!text.is_empty() && beside.is_dir()) {
        beside.to_string_lossy().into_owned()
    } else {
        text.to_owned()
    }
}

fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|section| section.path == path)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn to_figment(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text.clone()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(flag) => Value::from(*flag),
        toml::Value::Datetime(time) => Value::from(time.to_string()),
        toml::Value::Array(items) => Value::from(items.iter().map(to_figment).collect::<Vec<_>>()),
        toml::Value::Table(table) => Value::from(
            table
                .iter()
                .map(|(name, inner)| (name.clone(), to_figment(inner)))
                .collect::<figment::value::Dict>(),
        ),
    }
}

/// The variables of `env` that set a key, as `CHANDLER_TRAIN__LEARNING_RATE` and
/// `CHANDLER_TRAIN_LEARNING_RATE` both do.
///
/// A variable that starts with a section's name but names no key is an entry too, so that a typing
/// error is found; others, such as `CHANDLER_DIR`, are left alone.
pub(super) fn from_env(env: &[(String, String)]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (name, text) in env {
        let Some(rest) = name.strip_prefix("CHANDLER_") else { continue };
        let written = rest.to_ascii_lowercase();
        let flat = written.replace("__", "_");
        let origin = Origin::Env { name: name.clone() };
        if let Some(key) = keys().find(|key| key.path().replace('.', "_") == flat) {
            entries.push(Entry { path: key.path(), value: parse_word(key, text), origin });
        } else if let Some(section) = section_named_in(&flat) {
            let path = format!("{section}.{}", &flat[section.len() + 1..]);
            entries.push(Entry { path, value: Value::from(text.clone()), origin });
        }
    }
    entries
}

fn section_named_in(flat: &str) -> Option<&'static str> {
    SECTIONS
        .iter()
        .map(|section| section.path)
        .find(|path| flat.strip_prefix(path).is_some_and(|rest| rest.starts_with('_')))
}

/// The flags that stand for keys.
pub(super) fn from_flags(flags: &[FlagValue]) -> Vec<Entry> {
    flags.iter().map(|flag| set(flag.key, &flag.value, Origin::Flag { flag: flag.flag })).collect()
}

/// The `--set section.key=value` arguments.
pub(super) fn from_set(arguments: &[String], problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for argument in arguments {
        match argument.split_once('=') {
            Some((path, text)) if !path.trim().is_empty() => {
                entries.push(set(path.trim(), text.trim(), Origin::Set));
            }
            _ => problems.push(Problem::MalformedSet { text: argument.clone() }),
        }
    }
    entries
}

fn set(path: &str, text: &str, origin: Origin) -> Entry {
    let value = key(path).map_or_else(|| Value::from(text.to_owned()), |key| parse_word(key, text));
    Entry { path: path.to_owned(), value, origin }
}

/// A value typed on a command line or in a variable: TOML where it is TOML, and text otherwise.
fn parse_word(key: &Key, text: &str) -> Value {
    if key.optional && text == "none" {
        return Value::Empty(Tag::Default, Empty::None);
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"));
    match (key.kind, parsed) {
        (kind, Some(value @ toml::Value::String(_))) if kind.is_textual() => to_figment(&value),
        (kind, _) if kind.is_textual() => Value::from(text.to_owned()),
        (_, Some(value)) => to_figment(&value),
        (Kind::ListOr(words), None) if words.contains(&text) => Value::from(text.to_owned()),
        (Kind::List | Kind::ListOr(_), None) => Value::from(
            text.split(',').map(|item| Value::from(item.trim().to_owned())).collect::<Vec<_>>(),
        ),
        (_, None) => Value::from(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(path: &str, text: &str) -> Value {
        parse_word(key(path).unwrap(), text)
    }

    #[test]
    fn words_become_what_their_key_wants() {
        assert_eq!(word("train.learning_rate", "2e-5").to_f64(), Some(2e-5));
        assert_eq!(word("train.max_steps", "-1").to_i128(), Some(-1));
        assert_eq!(word("data.packing", "true").to_bool(), Some(true));
        assert_eq!(word("model.path", "123").as_str(), Some("123"));
        assert_eq!(word("model.path", "\"a b\"").as_str(), Some("a b"));
        assert_eq!(word("lora.target_modules", "all-linear").as_str(), Some("all-linear"));
        assert_eq!(word("lora.target_modules", "q_proj, v_proj").as_array().unwrap().len(), 2);
        assert_eq!(word("eval.stop", "[\"a\", \"b,c\"]").as_array().unwrap().len(), 2);
        assert!(matches!(word("eval.top_k", "none"), Value::Empty(..)));
        assert_eq!(word("train.learning_rate", "fast").as_str(), Some("fast"));
    }

    #[test]
    fn both_spellings_of_a_variable_name_one_key() {
        let env = |name: &str| {
            let entries = from_env(&[(name.to_owned(), "0.5".to_owned())]);
            entries.into_iter().map(|entry| entry.path).next()
        };
        assert_eq!(env("CHANDLER_TRAIN__LEARNING_RATE").as_deref(), Some("train.learning_rate"));
        assert_eq!(env("CHANDLER_TRAIN_LEARNING_RATE").as_deref(), Some("train.learning_rate"));
        assert_eq!(
            env("CHANDLER_TRAIN_LR_SCHEDULER_KWARGS_MIN_LR").as_deref(),
            Some("train.lr_scheduler_kwargs.min_lr")
        );
        assert_eq!(env("CHANDLER_TRAIN_LEARNING_RAT").as_deref(), Some("train.learning_rat"));
        assert_eq!(env("CHANDLER_DIR"), None);
        assert_eq!(env("TRAIN_LEARNING_RATE"), None);
    }
}
