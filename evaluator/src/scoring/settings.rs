//! A scorer in configuration: a name, or a table.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::chrf::Chrf;
use super::error::ScorerSettingsError;
use super::extract::Extract;
use super::normalize::Normalize;
use super::numeric::Numeric;
use super::pattern::{Pattern, RegexRule};
use super::rouge::RougeL;
use super::scorer::{Rule, Scorer};

/// Settings that every scorer has.
const COMMON: [&str; 2] = ["extract", "strip_thinking"];

impl Scorer {
    /// The scorer of this name, with the settings that it has by default.
    pub fn named(name: &str) -> Result<Self, ScorerSettingsError> {
        let mut table = Map::new();
        table.insert("name".to_owned(), name.into());
        Self::from_table(table)
    }

    fn from_table(mut table: Map<String, Value>) -> Result<Self, ScorerSettingsError> {
        let Some(Value::String(name)) = table.remove("name") else {
            return Err(ScorerSettingsError::NoName);
        };
        let Some(scorer) = Self::NAMES.into_iter().find(|known| *known == name) else {
            return Err(ScorerSettingsError::Unknown { name });
        };
        let settings: Vec<&str> = settings(scorer).iter().copied().chain(COMMON).collect();
        if let Some(setting) = table.keys().find(|key| !settings.contains(&key.as_str())) {
            let setting = setting.clone();
            return Err(ScorerSettingsError::UnknownSetting { scorer, setting, settings });
        }
        let extract = table.remove("extract").map(|value| read(scorer, value)).transpose()?;
        let thinking =
            table.remove("strip_thinking").map(|value| read(scorer, value)).transpose()?;
        let read = Self {
            rule: Rule::from_table(scorer, table)?,
            extract: extract.unwrap_or_default(),
            strip_thinking: thinking.unwrap_or(true),
        };
        read.check()?;
        Ok(read)
    }

    /// Looks whether the settings make sense together.
    fn check(&self) -> Result<(), ScorerSettingsError> {
        let scorer = self.name();
        let bounds = |setting, must: &str, holds: bool| {
            let must = must.to_owned();
            let error = ScorerSettingsError::Bounds { scorer, setting, must };
            if holds { Ok(()) } else { Err(error) }
        };
        if let Extract::After(marker) = &self.extract {
            bounds("extract.after", "a marker that is not empty", !marker.is_empty())?;
        }
        let positive = |value: f64| value.is_finite() && value >= 0.0;
        match &self.rule {
            Rule::Numeric(numeric) => {
                let must = "a number, at least 0";
                bounds("tolerance", must, positive(numeric.tolerance))?;
                bounds("relative_tolerance", must, positive(numeric.relative_tolerance))?;
                let marked = numeric.marker.as_ref().is_none_or(|marker| !marker.is_empty());
                bounds("marker", "a marker that is not empty", marked)
            }
            Rule::Chrf(chrf) => {
                let orders = |order: usize| order <= Chrf::MAX_ORDER;
                let most = Chrf::MAX_ORDER;
                let char_order = orders(chrf.char_order) && chrf.char_order > 0;
                bounds("char_order", &format!("from 1 to {most}"), char_order)?;
                bounds("word_order", &format!("from 0 to {most}"), orders(chrf.word_order))?;
                let beta = (0.01..=100.0).contains(&chrf.beta);
                bounds("beta", "from 0.01 to 100", beta)
            }
            Rule::Regex(regex) => {
                let groups = regex.pattern.as_ref().map_or(0, Pattern::groups);
                let exists = regex.group.is_none_or(|group| group < groups);
                bounds("group", "the number of a group of its pattern", exists)
            }
            _ => Ok(()),
        }
    }
}

fn settings(scorer: &str) -> &'static [&'static str] {
    match scorer {
        "exact_match" | "contains" => Normalize::SETTINGS,
        "regex" => RegexRule::SETTINGS,
        "numeric" => Numeric::SETTINGS,
        "rouge_l" => RougeL::SETTINGS,
        "chrf" => Chrf::SETTINGS,
        _ => &[],
    }
}

fn read<T: DeserializeOwned>(scorer: &'static str, value: Value) -> Result<T, ScorerSettingsError> {
    serde_json::from_value(value).map_err(|source| ScorerSettingsError::Setting { scorer, source })
}

impl Rule {
    fn from_table(
        scorer: &'static str,
        table: Map<String, Value>,
    ) -> Result<Self, ScorerSettingsError> {
        let table = Value::Object(table);
        Ok(match scorer {
            "contains" => Self::Contains(read(scorer, table)?),
            "regex" => Self::Regex(read(scorer, table)?),
            "json_valid" => Self::JsonValid,
            "json_equal" => Self::JsonEqual,
            "numeric" => Self::Numeric(read(scorer, table)?),
            "rouge_l" => Self::RougeL(read(scorer, table)?),
            "chrf" => Self::Chrf(read(scorer, table)?),
            _ => Self::ExactMatch(read(scorer, table)?),
        })
    }

    fn table(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::ExactMatch(settings) | Self::Contains(settings) => serde_json::to_value(settings),
            Self::Regex(settings) => serde_json::to_value(settings),
            Self::JsonValid | Self::JsonEqual => Ok(Value::Object(Map::new())),
            Self::Numeric(settings) => serde_json::to_value(settings),
            Self::RougeL(settings) => serde_json::to_value(settings),
            Self::Chrf(settings) => serde_json::to_value(settings),
        }
    }
}

impl Serialize for Scorer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut table = Map::new();
        table.insert("name".to_owned(), self.name().into());
        if let Value::Object(settings) = self.rule.table().map_err(S::Error::custom)? {
            table.extend(settings);
        }
        let extract = serde_json::to_value(&self.extract).map_err(S::Error::custom)?;
        table.insert("strip_thinking".to_owned(), self.strip_thinking.into());
        // A marker is a table of its own, which TOML wants last.
        table.insert("extract".to_owned(), extract);
        table.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Scorer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = Scorer;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("the name of a scorer, or a table with its name and settings")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Scorer, E> {
        Scorer::named(name).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scorer, A::Error> {
        let mut table = Map::new();
        while let Some((key, value)) = entries.next_entry()? {
            table.insert(key, value);
        }
        Scorer::from_table(table).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Scorer, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn every_scorer_reads_back_as_it_was_written() {
        let mut tables: Vec<Value> = Scorer::NAMES.into_iter().map(Value::from).collect();
        tables.extend([
            json!({ "name": "regex", "pattern": r"(\d+)", "group": 1, "which": "last" }),
            json!({ "name": "numeric", "tolerance": 1, "marker": "####", "extract": "boxed" }),
            json!({ "name": "chrf", "word_order": 2, "extract": { "after": "A:" } }),
            json!({ "name": "contains", "ignore_case": true, "strip_thinking": false }),
        ]);
        for table in tables {
            let scorer = read(table.clone()).unwrap();
            let written = serde_json::to_value(&scorer).unwrap();
            assert_eq!(read(written.clone()).unwrap(), scorer, "{table}");
            let keys = written.as_object().unwrap().keys();
            let known: Vec<&str> = settings(scorer.name()).iter().copied().chain(COMMON).collect();
            assert!(keys.clone().all(|key| key == "name" || known.contains(&key.as_str())));
            for (key, value) in table.as_object().into_iter().flatten() {
                assert_eq!(
                    &written[key].as_f64().map_or(written[key].clone(), |n| json!(n)),
                    &value.as_f64().map_or(value.clone(), |n| json!(n))
                );
            }
        }
    }

    #[test]
    fn an_error_names_what_there_is() {
        let cases = [
            (json!("exact"), "no scorer \"exact\"; there are exact_match, contains, regex"),
            (json!({ "tolerance": 1 }), "name = one of exact_match"),
            (
                json!({ "name": "numeric", "tolerence": 1 }),
                "no setting \"tolerence\"; it has tolerance, relative_tolerance, which, marker, \
                 extract, strip_thinking",
            ),
            (json!({ "name": "json_valid", "deep": 1 }), "it has extract, strip_thinking"),
            (json!({ "name": "rouge_l", "stemmer": 1 }), "expected a boolean"),
            (json!({ "name": "chrf", "extract": "line" }), "`last_line`"),
            (json!({ "name": "regex", "pattern": "(" }), "not a regular expression: unclosed"),
            (json!({ "name": "regex", "pattern": "a", "group": 1 }), "number of a group"),
            (json!({ "name": "regex", "group": 0 }), "number of a group"),
            (json!({ "name": "numeric", "tolerance": -1 }), "tolerance must be"),
            (json!({ "name": "numeric", "marker": "" }), "marker must be"),
            (json!({ "name": "chrf", "char_order": 0 }), "from 1 to 16"),
            (json!({ "name": "chrf", "beta": 0 }), "from 0.01 to 100"),
            (json!({ "name": "chrf", "extract": { "after": "" } }), "extract.after must be"),
            (json!(4), "the name of a scorer, or a table"),
        ];
        for (table, expected) in cases {
            let error = read(table.clone()).unwrap_err();
            assert!(error.contains(expected), "{table}: {error}");
        }
    }
}
