//! The list of a sealed folder's files, which is written last.
//!
//! What is on the disk begins with a seal: the BLAKE3 of the text itself, taken with zeros in the
//! place of the seal's digits. So a changed bit shows wherever it is, also in what no file's hash
//! covers.

use serde::{Deserialize, Serialize};

/// The manifest's own name.
pub const MANIFEST_NAME: &str = "manifest.json";
/// The first version that is sealed.
const SEALED: u32 = 3;
/// What stands for the seal while it is made: as many digits.
const UNSEALED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What a sealed folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format: 3. In 1 the hashes were all SHA-256, in 1 and 2 there was no seal.
    pub version: u32,
    /// The files, in the order of their names.
    pub files: Vec<FileRecord>,
    /// Whatever the writer wants to know again.
    pub extra: serde_json::Value,
}

/// A manifest as it is written.
#[derive(Serialize)]
struct Sealed<'a> {
    seal: &'a str,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

/// As much of it as says whether the rest is to be believed.
#[derive(Deserialize)]
struct Seal {
    seal: Option<String>,
}

impl Manifest {
    /// The manifest of these files.
    pub(crate) fn new(files: Vec<FileRecord>, extra: serde_json::Value) -> Self {
        Self { version: SEALED, files, extra }
    }

    /// Its text, sealed.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(&Sealed { seal: UNSEALED, manifest: self })?;
        let seal = blake3::hash(&text).to_hex();
        if let Some(place) = place_of(UNSEALED, &text) {
            text[place].copy_from_slice(seal.as_bytes());
        }
        Ok(text)
    }

    /// What a text says, or why it is not to be believed.
    pub(crate) fn decode(mut text: Vec<u8>) -> Result<Self, String> {
        let words = |error: serde_json::Error| error.to_string();
        let manifest: Self = serde_json::from_slice(&text).map_err(words)?;
        let Seal { seal } = serde_json::from_slice(&text).map_err(words)?;
        let Some(seal) = seal else {
            let is_older = manifest.version < SEALED;
            return is_older.then_some(manifest).ok_or_else(|| "it has no seal".to_owned());
        };
        // Of another length it is none, and looking for it could take long.
        let place = (seal.len() == UNSEALED.len()).then(|| place_of(&seal, &text)).flatten();
        if let Some(place) = place {
            text[place].copy_from_slice(UNSEALED.as_bytes());
        }
        let is_whole = blake3::hash(&text).to_hex().as_str() == seal;
        is_whole.then_some(manifest).ok_or_else(|| "it is not what was sealed".to_owned())
    }
}

/// Where a seal's digits stand: at the first place that has them.
fn place_of(seal: &str, text: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = text.windows(UNSEALED.len()).position(|digits| digits == seal.as_bytes())?;
    Some(start..start + seal.len())
}

/// One file of a sealed folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Of its bytes.
    #[serde(flatten)]
    pub hash: FileHash,
}

/// A hash of a file's bytes, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileHash {
    /// What is written: several times as fast as the other, and as sure.
    Blake3(String),
    /// What earlier versions wrote.
    Sha256(String),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn manifest() -> Manifest {
        let hash = FileHash::Blake3("ab".repeat(32));
        let file = FileRecord { name: "weights".to_owned(), bytes: 7, hash };
        Manifest::new(vec![file], json!({ "step": 4, "lr": 0.1, "eval": null }))
    }

    #[test]
    fn a_changed_bit_shows_wherever_it_is() {
        let text = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(text.clone()), Ok(manifest()));
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(changed).is_err(), "bit {bit}");
        }
        for end in 0..text.len() {
            assert!(Manifest::decode(text[..end].to_vec()).is_err(), "cut to {end}");
        }
    }

    #[test]
    fn those_of_before_have_no_seal_and_those_of_now_need_one() {
        let of = |version: u32| json!({ "version": version, "files": [], "extra": 1 }).to_string();
        assert_eq!(Manifest::decode(of(2).into_bytes()).unwrap().extra, json!(1));
        assert!(Manifest::decode(of(3).into_bytes()).unwrap_err().contains("no seal"));
        let short = br#"{ "seal": "", "version": 3, "files": [], "extra": 1 }"#;
        assert!(Manifest::decode(short.to_vec()).unwrap_err().contains("not what was sealed"));
    }
}
