//! Many tensors in one launch: see `kernels/cuda/tensors.cuh`.

use candle_core::{Device, Result, Tensor};

use super::upload::upload;

/// Elements of a tensor that a block works on.
const CHUNK_ELEMENTS: usize = 8192;

/// Threads of such a block.
pub(super) const CHUNK_THREADS: usize = 256;

/// What the host writes of a table, field by field.
#[derive(Debug, Default)]
pub(super) struct Table {
    bytes: Vec<u8>,
    places: Vec<u32>,
    /// Of each tensor the place behind its last.
    ends: Vec<u32>,
}

impl Table {
    /// Adds an entry, of a tensor of so many elements.
    pub(super) fn push(&mut self, entry: &[u8], elements: usize) {
        self.bytes.extend_from_slice(entry);
        let tensor = self.ends.len() as u32;
        for chunk in 0..elements.div_ceil(CHUNK_ELEMENTS) as u32 {
            self.places.extend([tensor, chunk]);
        }
        self.ends.push(self.num_places() as u32);
    }

    /// Blocks that it takes to work on all of it.
    pub(super) fn num_places(&self) -> usize {
        self.places.len() / 2
    }

    /// Of each tensor the place behind its last.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The entries and the places, on the device.
    pub(super) fn on(&self, device: &Device) -> Result<[Tensor; 2]> {
        Ok([
            upload(&self.bytes, self.bytes.len(), device)?,
            upload(&self.places, self.places.len(), device)?,
        ])
    }
}
