//! Where the tokens of a decode step stand in the cache.

use candle_core::{Device, Result, Tensor, bail};

use crate::device;

/// A row of the batch: where its past is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Row of the cache.
    pub row: usize,
    /// Tokens of that row, the new one included.
    pub len: usize,
}

/// The places of the new tokens of a step, which on a GPU lie there too: brought over once for all
/// layers.
#[derive(Debug)]
pub struct Places {
    list: Vec<Place>,
    /// `[R, 2]`: row and length of each.
    on_gpu: Option<Tensor>,
    /// Tokens of a row that there is room for, where places may still [move](Self::move_to).
    room: Option<usize>,
}

impl Places {
    /// Places in caches on `device`.
    pub fn new(list: Vec<Place>, device: &Device) -> Result<Self> {
        let on_gpu = device.is_cuda().then(|| pairs(&list, device)).transpose()?;
        Ok(Self { list, on_gpu, room: None })
    }

    /// The same, for ops that are recorded: they find the places in this one's memory whenever the
    /// graph is launched, and have buffers for rows of up to `room` tokens.
    #[must_use]
    pub fn with_room(self, room: usize) -> Self {
        Self { room: Some(room.max(self.reach())), ..self }
    }

    /// Puts other places into the same memory, as many as there were.
    ///
    /// # Errors
    /// If their number is another, or one is beyond the room.
    pub fn move_to(&mut self, others: &Self) -> Result<()> {
        let (Some(own), Some(new)) = (&self.on_gpu, &others.on_gpu) else {
            bail!("places move on a GPU only")
        };
        if others.list.len() != self.list.len() || others.reach() > self.reach() {
            bail!(
                "{:?} are no places for {} rows of {}",
                others.list,
                self.list.len(),
                self.reach()
            );
        }
        own.slice_set(new, 0, 0)?;
        self.list.clone_from(&others.list);
        Ok(())
    }

    /// The places.
    pub fn list(&self) -> &[Place] {
        &self.list
    }

    /// Tokens of the longest row that the ops must reckon with.
    pub fn reach(&self) -> usize {
        let longest = self.list.iter().map(|place| place.len).max().unwrap_or(0);
        self.room.map_or(longest, |room| room.max(longest))
    }

    /// The places, for an op that reads them now: an error where they may still move.
    pub(crate) fn fixed(&self) -> Result<&[Place]> {
        match self.room {
            None => Ok(&self.list),
            Some(_) => bail!("attention without a kernel of the GPU cannot be recorded"),
        }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn on(&self, device: &Device) -> Result<&Tensor> {
        match &self.on_gpu {
            Some(places) if places.device().same_device(device) => Ok(places),
            _ => bail!("places that are not on the device of the cache"),
        }
    }
}

fn pairs(list: &[Place], device: &Device) -> Result<Tensor> {
    let numbers: Vec<u32> =
        list.iter().flat_map(|place| [place.row as u32, place.len as u32]).collect();
    device::upload(numbers, (list.len(), 2), device)
}
