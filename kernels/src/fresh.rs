//! Output buffers that are not zeroed first.
#![expect(unsafe_code, reason = "one place for buffers that are about to be overwritten")]

use crate::scratch::Plain;

/// `len` elements of unspecified value. Whoever asks writes every one of them before reading any.
///
/// Zeroing them would cost a pass over the memory, which is 5 to 10 % of the product or op that
/// fills it.
#[expect(clippy::uninit_vec, reason = "every bit pattern of a plain element is a value")]
pub(crate) fn fresh<T: Plain>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is there, and `Plain` elements have no invalid bit patterns and nothing
    // to drop.
    unsafe {
        values.set_len(len);
    }
    values
}
