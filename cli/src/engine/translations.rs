//! The GPU's kernels as the driver's compiler has translated them, kept from process to process in
//! the user's cache folder: a start need not wait for them again.

use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, DurableError, RealFs};
use chandler_kernels::device::Translations;
use sha2::{Digest, Sha256};

/// A folder of translations, each by the SHA-256 of what it is made of, and begun by a line that has
/// its own: what a failing disk has changed is not given to a driver but made anew.
#[derive(Debug)]
pub(super) struct InFolder(PathBuf);

impl InFolder {
    /// In the user's cache folder; `None` where there is none.
    pub(super) fn of_user() -> Option<Self> {
        Some(Self(cache_of_user()?.join("kernels")))
    }

    fn path(&self, source: &str) -> PathBuf {
        self.0.join(sha256(source) + ".ptx")
    }

    fn write(&self, path: &Path, translation: &str) -> Result<(), DurableError> {
        durable::create_folder_all(&RealFs, &self.0)?;
        let sealed = format!("{SEAL}{}\n{translation}", sha256(translation));
        durable::write(path, sealed.as_bytes())
    }
}

/// chandler's folder in `$XDG_CACHE_HOME`, or in `~/.cache`; `None` where neither is known.
pub(super) fn cache_of_user() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("chandler"))
}

/// How the first line begins; a comment to the driver.
const SEAL: &str = "// sha256 of what follows: ";

pub(super) fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unsealed(text: &str) -> Option<&str> {
    let (digest, translation) = text.strip_prefix(SEAL)?.split_once('\n')?;
    (digest == sha256(translation)).then_some(translation)
}

impl Translations for InFolder {
    fn get(&self, source: &str) -> Option<String> {
        let path = self.path(source);
        let text = std::fs::read_to_string(&path).ok()?;
        let translation = unsealed(&text);
        if translation.is_none() {
            tracing::warn!(path = %path.display(), "a kept kernel is damaged, and translated anew");
        }
        translation.map(str::to_owned)
    }

    fn put(&self, source: &str, translation: &str) {
        let path = self.path(source);
        if let Err(error) = self.write(&path, translation) {
            tracing::debug!(path = %path.display(), %error, "a translated kernel is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_for_the_same_source_alone() {
        let folder = tempfile::tempdir().unwrap();
        let kept = InFolder(folder.path().join("chandler/kernels"));
        assert_eq!(kept.get("// sm_90\nvoid f();"), None);
        kept.put("// sm_90\nvoid f();", ".version 9.0");
        assert_eq!(kept.get("// sm_90\nvoid f();").as_deref(), Some(".version 9.0"));
        assert_eq!(kept.get("// sm_80\nvoid f();"), None);
        let path = kept.path("// sm_90\nvoid f();");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            durable::write(&path, &bytes).unwrap();
            assert_eq!(kept.get("// sm_90\nvoid f();"), None, "byte {at}");
            durable::write(&path, &whole[..at]).unwrap();
            assert_eq!(kept.get("// sm_90\nvoid f();"), None, "cut at {at}");
        }
        kept.put("// sm_90\nvoid f();", ".version 9.1");
        assert_eq!(kept.get("// sm_90\nvoid f();").as_deref(), Some(".version 9.1"));
        // A place where nothing can be kept is no error.
        InFolder(PathBuf::from("/proc/nowhere")).put("a", "b");
    }
}
