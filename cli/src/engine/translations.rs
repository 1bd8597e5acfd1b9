//! The GPU's kernels as the driver's compiler has translated them, kept from process to process in
//! the user's cache folder: a start need not wait for them again.

use std::path::{Path, PathBuf};

use chandler_durable::{self as durable, DurableError, RealFs};
use chandler_kernels::device::Translations;
use sha2::{Digest, Sha256};

/// A folder of translations, each by the SHA-256 of what it is made of.
#[derive(Debug)]
pub(super) struct InFolder(PathBuf);

impl InFolder {
    /// In `$XDG_CACHE_HOME`, or in `~/.cache`; `None` where neither is known.
    pub(super) fn of_user() -> Option<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let caches =
            absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Self(caches.join("chandler").join("kernels")))
    }

    fn path(&self, source: &str) -> PathBuf {
        let digest = Sha256::digest(source);
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name + ".ptx")
    }

    fn write(&self, path: &Path, translation: &str) -> Result<(), DurableError> {
        durable::create_folder_all(&RealFs, &self.0)?;
        durable::write(path, translation.as_bytes())
    }
}

impl Translations for InFolder {
    fn get(&self, source: &str) -> Option<String> {
        std::fs::read_to_string(self.path(source)).ok()
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
        // A place where nothing can be kept is no error.
        InFolder(PathBuf::from("/proc/nowhere")).put("a", "b");
    }
}
