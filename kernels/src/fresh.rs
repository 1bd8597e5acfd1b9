//! Output buffers that are not zeroed first.
#![expect(unsafe_code, reason = "one place for buffers that are about to be overwritten")]

use candle_core::Result;

use crate::memory::{refused, request};
use crate::scratch::Plain;

/// `len` elements of unspecified value. Whoever asks writes every one of them before reading any.
///
/// Zeroing them would cost a pass over the memory, which is 5 to 10 % of the product or op that
/// fills it.
pub(crate) fn fresh<T: Plain>(len: usize) -> Result<Vec<T>> {
    let mut values = with_room(len)?;
    // SAFETY: the capacity is there, and `Plain` elements have no invalid bit patterns and nothing
    // to drop.
    unsafe {
        values.set_len(len);
    }
    Ok(values)
}

/// An empty vector that `len` elements fit into.
pub(crate) fn with_room<T>(len: usize) -> Result<Vec<T>> {
    let bytes = len * size_of::<T>();
    request(bytes)?;
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| refused(bytes))?;
    Ok(values)
}
