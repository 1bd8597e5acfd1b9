//! What a process of chandler died of, as the next one finds it: a mark in the user's cache folder while
//! something is tried that may end the process, and with it the GPU's context.

use std::io::ErrorKind;
use std::path::PathBuf;

use chandler_durable::{self as durable, DurableError, RealFs};
use chandler_kernels::device::Trials;

use super::translations::{cache_of_user, sha256};

/// Processes that may end in a trial before it is not made again. One may have been killed, or have lost
/// its power; a second one at the same place was not.
const MOST_ENDS: u32 = 2;

/// A folder of marks, each by the SHA-256 of what is tried: how many trials were begun and not ended, and
/// of what.
#[derive(Debug)]
pub(super) struct Marks(PathBuf);

impl Marks {
    /// In the user's cache folder; `None` where there is none.
    pub(super) fn of_user() -> Option<Self> {
        Some(Self(cache_of_user()?.join("trials")))
    }

    fn path(&self, what: &str) -> PathBuf {
        self.0.join(sha256(what))
    }

    /// 0 where there is no mark, and where nobody can read it.
    fn ends(&self, what: &str) -> u32 {
        let text = std::fs::read_to_string(self.path(what)).unwrap_or_default();
        text.lines().next().and_then(|line| line.parse().ok()).unwrap_or(0)
    }

    fn write(&self, what: &str, ends: u32) -> Result<(), DurableError> {
        durable::create_folder_all(&RealFs, &self.0)?;
        durable::write(&self.path(what), format!("{ends}\n{what}\n").as_bytes())
    }
}

impl Trials for Marks {
    fn begin(&self, what: &str) -> bool {
        let (path, ends) = (self.path(what), self.ends(what));
        if ends >= MOST_ENDS {
            tracing::warn!(
                what, mark = %path.display(),
                "not tried any more, for {ends} processes ended in it; it is tried again once the mark is removed"
            );
            return false;
        }
        if let Err(error) = self.write(what, ends + 1) {
            tracing::debug!(path = %path.display(), %error, "a trial leaves no mark");
        }
        true
    }

    fn end(&self, what: &str) {
        let path = self.path(what);
        match std::fs::remove_file(&path) {
            // Where it could not be written there is none.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(
                    path = %path.display(), %error,
                    "a mark stays, and counts as if a process had ended in this trial: remove it"
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_two_processes_is_not_tried_a_third_time() {
        let folder = tempfile::tempdir().unwrap();
        // As each process finds it.
        let marks = || Marks(folder.path().join("chandler/trials"));
        let (bad, good) = ("cuDNN 9.28.1 on 90: bad", "cuDNN 9.28.1 on 90: good");
        for _ in 0..2 {
            assert!(marks().begin(good));
            marks().end(good);
            assert!(marks().begin(bad));
        }
        assert!(!marks().begin(bad));
        assert!(marks().begin(good));
        // Another release may be better.
        assert!(marks().begin("cuDNN 9.29.0 on 90: bad"));
        std::fs::remove_file(marks().path(bad)).unwrap();
        assert!(marks().begin(bad));
    }

    #[test]
    fn a_mark_that_cannot_be_read_or_kept_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks(folder.path().to_path_buf());
        durable::write(&marks.path("it"), b"\xff").unwrap();
        assert!(marks.begin("it") && marks.begin("it") && !marks.begin("it"));
        let nowhere = Marks(PathBuf::from("/proc/nowhere"));
        assert!(nowhere.begin("it") && nowhere.begin("it") && nowhere.begin("it"));
        nowhere.end("it");
    }
}
