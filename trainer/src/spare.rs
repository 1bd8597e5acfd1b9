//! The memory of a copy that was written, kept for the next one.
//!
//! Fresh memory comes from the operating system page by page, and that takes several times as long as
//! the copying. So the memory of a copy stays as long as making it anew would hold training up by more
//! than a hundredth of the time, and as long as there is room for everything else beside it.

use std::time::{Duration, Instant};

use chandler_vram::Entry;

use crate::checkpoint::{Image, ImageCopy};
use crate::{Observer, TrainError};

/// A copy's memory is kept for this many times the time that it took to make.
const KEPT_FOR: u32 = 100;

/// Where the memory comes from that checkpoints are copied into.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// The last copy, once it has been written.
    idle: Option<(ImageCopy, Entry)>,
    /// When a copy was begun last, and what the last one in fresh memory took.
    last: Option<(Instant, Duration)>,
}

impl Spare {
    /// A copy of `image` in memory that is there already, or, where `has_room` says so, in fresh
    /// memory, which `enter` puts into the ledger.
    pub(crate) fn copy(
        &mut self,
        image: &Image,
        enter: impl FnOnce() -> Entry,
        has_room: impl FnOnce() -> bool,
    ) -> Result<Option<(ImageCopy, Entry)>, TrainError> {
        let begun = Instant::now();
        if let Some((idle, entry)) = self.idle.take() {
            self.last = self.last.map(|(_, took)| (begun, took));
            return Ok(Some((image.copied_into(idle)?, entry)));
        }
        if !has_room() {
            return Ok(None);
        }
        let entry = enter();
        let copy = image.copied()?;
        self.last = Some((begun, begun.elapsed()));
        Ok(Some((copy, entry)))
    }

    /// Takes back the copy that was written, and keeps it for the next one, at least to the next
    /// boundary.
    pub(crate) fn take_back(&mut self, copy: (ImageCopy, Entry)) {
        self.idle = Some(copy);
    }

    /// Between two steps: whether what is kept may stay.
    pub(crate) fn review(&mut self, observer: &mut dyn Observer) {
        let pays = self.last.is_some_and(|(begun, took)| begun.elapsed() < KEPT_FOR * took);
        if self.idle.is_some() && !(pays && observer.has_room_for_copy(0)) {
            self.idle = None;
        }
    }

    /// Gives back what is kept; whether that was anything.
    pub(crate) fn release(&mut self) -> bool {
        self.idle.take().is_some()
    }
}
