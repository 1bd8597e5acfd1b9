//! A checkpoint that is written while training goes on, from a copy in memory.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use chandler_durable::RealFs;
use chandler_vram::{Category, Entry, Phase};

use crate::checkpoint::ImageCopy;
use crate::{Observer, TrainError, Trainer};

/// A checkpoint that a thread is writing.
#[derive(Debug)]
pub(crate) struct Background {
    step: u64,
    path: PathBuf,
    /// `None` once joined.
    thread: Option<JoinHandle<Written>>,
    /// Of the copy that is being written.
    entry: Option<Entry>,
}

/// What was written, and how that went.
type Written = (ImageCopy, Result<(), TrainError>);

impl Background {
    fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the thread; the copy comes back unless it panicked.
    fn join(&mut self) -> (Option<(ImageCopy, Entry)>, Result<(), TrainError>) {
        let joined = self.thread.take().map(JoinHandle::join);
        match joined {
            None => (None, Ok(())),
            Some(Ok((copy, written))) => (self.entry.take().map(|entry| (copy, entry)), written),
            Some(Err(_)) => {
                let reason = "writing it panicked".to_owned();
                (None, Err(TrainError::BadCheckpoint { path: self.path.clone(), reason }))
            }
        }
    }
}

impl Drop for Background {
    /// A run that ends with an error leaves no thread behind that still writes.
    fn drop(&mut self) {
        let _unheard = self.join();
    }
}

impl Trainer<'_> {
    /// Writes the checkpoint of this step where the observer wants it: from a copy, while training
    /// goes on, if there is memory for one, else now.
    pub(crate) fn checkpoint_for(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        // Two copies at a time would be one too many.
        self.settle_checkpoint(observer, true)?;
        self.ledger.begin(Phase::Save);
        let begun = self.begin_checkpoint(observer);
        self.ledger.begin(Phase::Train);
        begun
    }

    fn begin_checkpoint(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let path = observer.checkpoint_path(self.step).map_err(TrainError::Observer)?;
        let Some(path) = path else { return Ok(()) };
        let image = self.image(observer.checkpoint_extra());
        let bytes = image.bytes();
        let enter = || self.ledger.enter(Category::Checkpoint, bytes);
        let copy = self.spare.copy(&image, enter, || observer.has_room_for_copy(bytes));
        // Where copying fails after all, it is written without a copy.
        if let Ok(Some(copy)) = copy {
            return self.write_beside(copy, path);
        }
        let written = image.write(&*observer.file_system(image.bytes()), &path);
        settle(observer, self.step, &path, written)
    }

    fn write_beside(
        &mut self,
        (copy, entry): (ImageCopy, Entry),
        path: PathBuf,
    ) -> Result<(), TrainError> {
        let place = path.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || {
                stand_back();
                let written = copy.write(&RealFs, &place);
                (copy, written)
            })
            .map_err(|source| TrainError::Thread { source })?;
        self.background =
            Some(Background { step: self.step, path, thread: Some(thread), entry: Some(entry) });
        Ok(())
    }

    /// Tells the observer about a checkpoint that has been written meanwhile; where it `must` be,
    /// waits for it.
    pub(crate) fn settle_checkpoint(
        &mut self,
        observer: &mut dyn Observer,
        must: bool,
    ) -> Result<(), TrainError> {
        let over = self.background.take_if(|background| must || background.is_over());
        let Some(mut background) = over else { return Ok(()) };
        let (copy, written) = background.join();
        if let Some(copy) = copy {
            self.spare.take_back(copy);
        }
        settle(observer, background.step, &background.path, written)
    }
}

/// This thread gets the time that training leaves, and a tenth of a core at least.
fn stand_back() {
    // Elsewhere a process has one priority.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 10) {
        tracing::debug!(%error, "checkpoints are written at the priority of training");
    }
}

fn settle(
    observer: &mut dyn Observer,
    step: u64,
    path: &Path,
    written: Result<(), TrainError>,
) -> Result<(), TrainError> {
    match written {
        Ok(()) => observer.checkpoint_written(step, path).map_err(TrainError::Observer),
        Err(error) => observer.checkpoint_failed(step, error),
    }
}
