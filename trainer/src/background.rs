//! A checkpoint that is written while training goes on, from a copy in memory.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use chandler_durable::RealFs;
use chandler_vram::{Category, Entry, Phase};

use crate::checkpoint::Image;
use crate::{Observer, TrainError, Trainer};

/// A checkpoint that a thread is writing.
#[derive(Debug)]
pub(crate) struct Background {
    step: u64,
    path: PathBuf,
    /// `None` once joined.
    thread: Option<JoinHandle<Result<(), TrainError>>>,
    /// The copy that is being written.
    _copy: Entry,
}

impl Background {
    fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn join(&mut self) -> Result<(), TrainError> {
        let joined = self.thread.take().map_or(Ok(Ok(())), JoinHandle::join);
        joined.unwrap_or_else(|_| {
            let reason = "writing it panicked".to_owned();
            Err(TrainError::BadCheckpoint { path: self.path.clone(), reason })
        })
    }
}

impl Drop for Background {
    /// A run that ends with an error leaves no thread behind that still writes.
    fn drop(&mut self) {
        let _ = self.join();
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
        if observer.has_room_for_copy(image.bytes()) {
            // Where the copy fails after all, it is written without one.
            if let Ok(copy) = image.copied() {
                return self.write_beside(copy, path);
            }
        }
        let written = image.write(&*observer.file_system(image.bytes()), &path);
        settle(observer, self.step, &path, written)
    }

    fn write_beside(&mut self, image: Image, path: PathBuf) -> Result<(), TrainError> {
        let copy = self.ledger.enter(Category::Checkpoint, image.bytes());
        let place = path.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || image.write(&RealFs, &place))
            .map_err(|source| TrainError::Thread { source })?;
        self.background =
            Some(Background { step: self.step, path, thread: Some(thread), _copy: copy });
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
        let written = background.join();
        settle(observer, background.step, &background.path, written)
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
