//! The base model that a state directory is bound to.
//!
//! Everything in a state directory descends from one base model. A configuration that would change
//! its architecture, vocabulary or tokenizer is refused: the checkpoints would no longer fit.

use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, params};
use serde::Serialize;

use super::error::{Doing, StoreError};
use super::{Store, now};

/// What may not change about the base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The architecture, such as `Qwen3ForCausalLM`.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// SHA-256 of `tokenizer.json` in hexadecimal.
    pub tokenizer_sha256: String,
    /// The folder or hub id it was taken from; may change, since folders move.
    pub base_model: String,
}

/// The refusal of a base model that does not fit what is already there.
#[derive(Debug, thiserror::Error)]
#[error(
    "the state directory {} is bound to another base model: {} ({})",
    state_dir.display(), bound.base_model, differences.join("; ")
)]
pub struct BindingMismatch {
    /// The state directory.
    pub state_dir: PathBuf,
    /// What it is bound to.
    pub bound: Binding,
    /// What was to be used instead.
    pub wanted: Binding,
    /// What differs, in words.
    pub differences: Vec<String>,
}

impl BindingMismatch {
    /// How to go on with the old model, or to start anew with the new one.
    pub fn hint(&self) -> String {
        format!(
            "to go on, set model.path back to {}; to start anew with {}, make another state \
             directory: `chandler init --dir NEW --model {}`",
            self.bound.base_model, self.wanted.base_model, self.wanted.base_model
        )
    }
}

impl Binding {
    /// What would change, in words; empty where nothing would.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.architecture != wanted.architecture {
            differences
                .push(format!("architecture {}, not {}", self.architecture, wanted.architecture));
        }
        if self.vocab_size != wanted.vocab_size {
            differences
                .push(format!("vocabulary of {}, not {}", self.vocab_size, wanted.vocab_size));
        }
        if self.tokenizer_sha256 != wanted.tokenizer_sha256 {
            differences.push("another tokenizer.json".to_owned());
        }
        differences
    }

    /// Refuses `wanted` if it differs in what may not change.
    pub fn admit(&self, wanted: &Self, state_dir: &Path) -> Result<(), Box<BindingMismatch>> {
        let differences = self.differences(wanted);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Box::new(BindingMismatch {
            state_dir: state_dir.to_owned(),
            bound: self.clone(),
            wanted: wanted.clone(),
            differences,
        }))
    }
}

impl Store {
    /// The binding, if there is one yet.
    pub fn binding(&self) -> Result<Option<Binding>, StoreError> {
        self.connection
            .query_row(
                "SELECT architecture, vocab_size, tokenizer_sha256, base_model FROM binding",
                [],
                |row| {
                    Ok(Binding {
                        architecture: row.get(0)?,
                        vocab_size: row.get::<_, i64>(1)? as u64,
                        tokenizer_sha256: row.get(2)?,
                        base_model: row.get(3)?,
                    })
                },
            )
            .optional()
            .doing("read the binding to the base model")
    }

    /// Binds the state directory, once; a second call changes nothing.
    pub fn bind(&self, binding: &Binding) -> Result<(), StoreError> {
        self.connection
            .execute(
                "INSERT OR IGNORE INTO binding
                     (id, architecture, vocab_size, tokenizer_sha256, base_model, bound_at)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5)",
                params![
                    binding.architecture,
                    binding.vocab_size as i64,
                    binding.tokenizer_sha256,
                    binding.base_model,
                    now()
                ],
            )
            .doing("bind the state directory to its base model")
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen() -> Binding {
        Binding {
            architecture: "Qwen3ForCausalLM".into(),
            vocab_size: 151_936,
            tokenizer_sha256: "aa".into(),
            base_model: "Qwen/Qwen3-0.6B".into(),
        }
    }

    #[test]
    fn the_first_binding_stays_and_others_are_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("chandler.db")).unwrap();
        assert_eq!(store.binding().unwrap(), None);
        store.bind(&qwen()).unwrap();
        store.bind(&Binding { vocab_size: 1, ..qwen() }).unwrap();
        let bound = store.binding().unwrap().unwrap();
        assert_eq!(bound, qwen());

        let moved = Binding { base_model: "/elsewhere".into(), ..qwen() };
        assert!(bound.admit(&moved, folder.path()).is_ok());
        let other = Binding { vocab_size: 32_000, tokenizer_sha256: "bb".into(), ..moved };
        let refusal = bound.admit(&other, folder.path()).unwrap_err();
        let text = refusal.to_string();
        assert!(text.contains("vocabulary of 151936, not 32000; another tokenizer.json"), "{text}");
        assert!(refusal.hint().contains("init --dir NEW --model /elsewhere"));
    }
}
