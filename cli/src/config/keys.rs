//! What a configuration key is: its name, type, bounds and meaning, written once per field.
//!
//! The [`section!`](crate::config::keys::section) macro turns one declaration into the serde
//! struct, its `Default` and its [`Key`] table, so that the reference that
//! `chandler config reference` prints, the checks and the struct cannot drift apart.

use std::path::PathBuf;

/// What a key accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number; `signed` ones may be negative.
    Integer {
        /// Whether values below zero are allowed.
        signed: bool,
    },
    /// A number with or without a fraction.
    Number,
    /// Any text.
    Text,
    /// A path; a relative one in `chandler.toml` starts at the folder of that file.
    Path,
    /// A model folder (relative as [`Kind::Path`]) or the id of a model on the hub.
    ModelPath,
    /// A list of texts.
    List,
    /// A list of texts, or one of these words.
    ListOr(&'static [&'static str]),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An amount of memory, such as `2GiB`.
    Size,
    /// Where a model computes.
    Device,
    /// A list of tables, each a webhook.
    Webhooks,
}

impl Kind {
    /// The kind in words, as the reference and the errors print it.
    pub fn describe(self) -> String {
        let quoted = |words: &[&str]| {
            words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Bool => "true or false".into(),
            Self::Integer { signed: true } => "integer".into(),
            Self::Integer { signed: false } => "integer from 0".into(),
            Self::Number => "number".into(),
            Self::Text => "text".into(),
            Self::Path => "path".into(),
            Self::ModelPath => "folder or hub id".into(),
            Self::List => "list of texts".into(),
            Self::ListOr(words) => format!("list of texts, or {}", quoted(words)),
            Self::Choice(words) => format!("one of {}", quoted(words)),
            Self::Size => "size such as \"2GiB\"".into(),
            Self::Device => "\"auto\", \"cpu\", \"cuda\" or such as \"cuda:1\"".into(),
            Self::Webhooks => "list of tables".into(),
        }
    }

    /// Whether a bare word on the command line is meant as text whatever it looks like.
    pub fn is_textual(self) -> bool {
        matches!(
            self,
            Self::Text | Self::Path | Self::ModelPath | Self::Choice(_) | Self::Size | Self::Device
        )
    }
}

/// The values a numeric key may take.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    /// Smallest value, if there is one.
    pub min: Option<f64>,
    /// Largest value, if there is one.
    pub max: Option<f64>,
    /// Whether `min` itself is refused.
    pub above_min: bool,
    /// Whether `max` itself is refused.
    pub below_max: bool,
}

impl Bounds {
    /// No bounds.
    pub const NONE: Self = Self { min: None, max: None, above_min: false, below_max: false };

    /// `value >= min`.
    pub const fn at_least(min: f64) -> Self {
        Self { min: Some(min), ..Self::NONE }
    }

    /// `value > min`.
    pub const fn above(min: f64) -> Self {
        Self { min: Some(min), above_min: true, ..Self::NONE }
    }

    /// `min <= value <= max`.
    pub const fn between(min: f64, max: f64) -> Self {
        Self { min: Some(min), max: Some(max), ..Self::NONE }
    }

    /// `min <= value < max`.
    pub const fn half_open(min: f64, max: f64) -> Self {
        Self { min: Some(min), max: Some(max), below_max: true, ..Self::NONE }
    }

    /// `min < value <= max`.
    pub const fn above_up_to(min: f64, max: f64) -> Self {
        Self { min: Some(min), max: Some(max), above_min: true, ..Self::NONE }
    }

    /// Whether `value` (never NaN or infinite) lies within.
    pub fn contain(&self, value: f64) -> bool {
        let over =
            self.min.is_none_or(|min| if self.above_min { value > min } else { value >= min });
        let under =
            self.max.is_none_or(|max| if self.below_max { value < max } else { value <= max });
        value.is_finite() && over && under
    }

    /// The bounds in words, or nothing where there are none.
    pub fn describe(&self) -> Option<String> {
        let low = self.min.map(|min| {
            if self.above_min { format!("greater than {min}") } else { format!("at least {min}") }
        });
        let high = self.max.map(|max| {
            if self.below_max { format!("less than {max}") } else { format!("at most {max}") }
        });
        match (low, high) {
            (Some(low), Some(high)) => Some(format!("{low} and {high}")),
            (low, high) => low.or(high),
        }
    }
}

/// One configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The section it stands in, such as `train`.
    pub section: &'static str,
    /// Its name in that section, such as `learning_rate`.
    pub name: &'static str,
    /// What it accepts.
    pub kind: Kind,
    /// Whether it may be left unset.
    pub optional: bool,
    /// The bounds of a numeric key.
    pub bounds: Bounds,
    /// What it means.
    pub doc: &'static str,
}

impl Key {
    /// The dotted path, such as `train.learning_rate`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// What it accepts, bounds included, in words.
    pub fn expected(&self) -> String {
        match self.bounds.describe() {
            Some(bounds) => format!("{}, {bounds}", self.kind.describe()),
            None => self.kind.describe(),
        }
    }

    /// The meaning on one line, without the leading space of a doc comment.
    pub fn meaning(&self) -> String {
        self.doc.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// A Rust type that can stand in a section.
pub trait ConfigValue {
    /// What a key of this type accepts.
    const KIND: Kind;
    /// Whether a key of this type may be left unset.
    const OPTIONAL: bool = false;
}

impl ConfigValue for bool {
    const KIND: Kind = Kind::Bool;
}
impl ConfigValue for u64 {
    const KIND: Kind = Kind::Integer { signed: false };
}
impl ConfigValue for usize {
    const KIND: Kind = Kind::Integer { signed: false };
}
impl ConfigValue for i64 {
    const KIND: Kind = Kind::Integer { signed: true };
}
impl ConfigValue for f64 {
    const KIND: Kind = Kind::Number;
}
impl ConfigValue for String {
    const KIND: Kind = Kind::Text;
}
impl ConfigValue for PathBuf {
    const KIND: Kind = Kind::Path;
}
impl ConfigValue for Vec<String> {
    const KIND: Kind = Kind::List;
}
impl<T: ConfigValue> ConfigValue for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
}

/// Declares a section: a serde struct that refuses unknown fields, its defaults and its keys.
macro_rules! section {
    (
        $(#[doc = $section_doc:literal])+
        $name:ident in $path:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident : $ty:ty = $default:expr $(, $bounds:expr)? ;
            )*
        }
        $( with $(#[doc = $nested_doc:literal])+ $nested:ident : $nested_ty:ty )?
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty, )*
            $( $(#[doc = $nested_doc])+ pub $nested: $nested_ty, )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $( $nested: <$nested_ty>::default(), )? }
            }
        }

        impl $name {
            /// What the section is about.
            pub const ABOUT: &'static str = concat!($($section_doc),+);
            /// The section's dotted path.
            pub const PATH: &'static str = $path;
            /// The section's keys, in the order of their declaration.
            pub const KEYS: &'static [$crate::config::keys::Key] = &[
                $(
                    $crate::config::keys::Key {
                        section: $path,
                        name: stringify!($field),
                        kind: <$ty as $crate::config::keys::ConfigValue>::KIND,
                        optional: <$ty as $crate::config::keys::ConfigValue>::OPTIONAL,
                        bounds: section!(@bounds $($bounds)?),
                        doc: concat!($($doc),+),
                    },
                )*
            ];
        }
    };
    (@bounds) => { $crate::config::keys::Bounds::NONE };
    (@bounds $bounds:expr) => { $bounds };
}

/// Declares a word choice: an enum whose words are those of the configuration.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])+
        $name:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal $(| $alias:literal)* , )+
        }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $( $(#[doc = $doc])+ #[serde(rename = $word $(, alias = $alias)*)] $variant, )+
        }

        impl $name {
            /// The word that stands for this choice.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl $crate::config::keys::ConfigValue for $name {
            const KIND: $crate::config::keys::Kind =
                $crate::config::keys::Kind::Choice(&[$( $word, $( $alias, )* )+]);
        }
    };
}

pub(crate) use {choice, section};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_their_edges() {
        assert!(Bounds::at_least(0.0).contain(0.0));
        assert!(!Bounds::above(0.0).contain(0.0));
        assert!(Bounds::half_open(0.0, 1.0).contain(0.999));
        assert!(!Bounds::half_open(0.0, 1.0).contain(1.0));
        assert!(Bounds::above_up_to(0.0, 1.0).contain(1.0));
        assert!(!Bounds::NONE.contain(f64::NAN));
        assert!(!Bounds::NONE.contain(f64::INFINITY));
    }

    #[test]
    fn bounds_say_what_they_are() {
        assert_eq!(Bounds::NONE.describe(), None);
        assert_eq!(Bounds::at_least(1.0).describe().as_deref(), Some("at least 1"));
        assert_eq!(
            Bounds::half_open(0.0, 1.0).describe().as_deref(),
            Some("at least 0 and less than 1")
        );
    }
}
