//! Descriptors: what the library's graphs are made of. One is made, given its attributes, finalized, and
//! then only read.
#![expect(unsafe_code, reason = "calls into a C library")]

use std::ffi::c_void;
use std::ptr;

use candle_core::{Result, bail};

use super::library::{Raw, functions};

/// Which thing a descriptor describes, as the library numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Pointwise = 0,
    Engine = 2,
    EngineConfig = 3,
    Heuristics = 4,
    Plan = 5,
    KnobChoice = 7,
    PointwiseOperation = 13,
    Graph = 15,
    VariantPack = 16,
    Tensor = 17,
    #[cfg(test)]
    Device = 38,
    AttentionForward = 41,
    AttentionBackward = 43,
    DiagonalMask = 44,
}

/// What an attribute's values may be: how they lie in memory, and the number that the library has for
/// the type.
///
/// # Safety
/// The values lie as the library expects values of this type to.
pub(super) unsafe trait Value: Copy {
    const TYPE: i32;
}

/// Values of the library's own types.
macro_rules! values {
    ($($(#[$what:meta])* $name:ident($inner:ty) = $number:expr;)*) => {$(
        $(#[$what])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(transparent)]
        pub(super) struct $name(pub(super) $inner);

        // SAFETY: it lies as the C type does that it holds.
        unsafe impl Value for $name {
            const TYPE: i32 = $number;
        }
    )*};
}

values! {
    /// A connection to one device.
    Handle(Raw) = 0;
    DataType(i32) = 1;
    Flag(bool) = 2;
    Address(*mut c_void) = 6;
    HeuristicMode(i32) = 8;
    Knob(i32) = 9;
    Mode(i32) = 14;
    /// A letter of a text.
    #[cfg_attr(not(test), allow(dead_code, reason = "what describes a device that is not there"))]
    Letter(u8) = 24;
}

// SAFETY: a number of 64 bits.
unsafe impl Value for i64 {
    const TYPE: i32 = 3;
}

/// The number of the type of a descriptor as a value.
const DESCRIPTOR: i32 = 15;

/// A descriptor of the library's, destroyed with this.
#[derive(Debug)]
pub(super) struct Descriptor(Raw);

// SAFETY: the library lets any thread use a descriptor, one at a time; nothing here is shared.
unsafe impl Send for Descriptor {}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Ok(library) = functions() {
            // SAFETY: it was made, and is destroyed once.
            unsafe { (library.destroy_descriptor)(self.0) };
        }
    }
}

impl Descriptor {
    pub(super) fn new(kind: Kind) -> Result<Self> {
        let library = functions().map_err(candle_core::Error::msg)?;
        let mut raw = ptr::null_mut();
        // SAFETY: there is room for one.
        let status = unsafe { (library.create_descriptor)(kind as i32, &raw mut raw) };
        library.check(status, "a descriptor")?;
        Ok(Self(raw))
    }

    /// With the attribute of this number.
    pub(super) fn with<V: Value>(self, attribute: i32, values: &[V]) -> Result<Self> {
        // SAFETY: the type says how the values lie.
        unsafe { self.set(attribute, V::TYPE, values.len(), values.as_ptr().cast()) }?;
        Ok(self)
    }

    /// With other descriptors, which are to live as long as this one.
    pub(super) fn with_descriptors(self, attribute: i32, values: &[&Self]) -> Result<Self> {
        let raw: Vec<Raw> = values.iter().map(|value| value.0).collect();
        // SAFETY: these are descriptors.
        unsafe { self.set(attribute, DESCRIPTOR, raw.len(), raw.as_ptr().cast()) }?;
        Ok(self)
    }

    /// # Safety
    /// There are so many values of this type.
    unsafe fn set(
        &self,
        attribute: i32,
        kind: i32,
        count: usize,
        values: *const c_void,
    ) -> Result<()> {
        let library = functions().map_err(candle_core::Error::msg)?;
        // SAFETY: the caller's promise; the library copies what it is given.
        let status =
            unsafe { (library.set_attribute)(self.0, attribute, kind, count as i64, values) };
        library.check(status, &format!("attribute {attribute}"))
    }

    /// Whole: nothing of it changes any more.
    pub(super) fn finalized(self, what: &str) -> Result<Self> {
        let library = functions().map_err(candle_core::Error::msg)?;
        // SAFETY: it is a descriptor.
        library.check(unsafe { (library.finalize)(self.0) }, what)?;
        Ok(self)
    }

    /// # Safety
    /// There is room for so many values of this type.
    unsafe fn get(
        &self,
        attribute: i32,
        kind: i32,
        room: usize,
        values: *mut c_void,
    ) -> Result<usize> {
        let library = functions().map_err(candle_core::Error::msg)?;
        let mut count = 0i64;
        // SAFETY: the caller's promise.
        let status = unsafe {
            (library.get_attribute)(self.0, attribute, kind, room as i64, &raw mut count, values)
        };
        library.check(status, &format!("attribute {attribute}"))?;
        Ok(count.max(0) as usize)
    }

    /// An attribute that is one number.
    pub(super) fn number(&self, attribute: i32) -> Result<i64> {
        let mut value = 0i64;
        // SAFETY: there is room for one.
        let count =
            unsafe { self.get(attribute, i64::TYPE, 1, (&raw mut value).cast::<c_void>()) }?;
        if count != 1 {
            bail!("cuDNN: attribute {attribute} is {count} numbers");
        }
        Ok(value)
    }

    /// An attribute that is descriptors: at most so many of them.
    pub(super) fn descriptors(&self, attribute: i32, kind: Kind, most: usize) -> Result<Vec<Self>> {
        let mut made: Vec<Self> = (0..most).map(|_| Self::new(kind)).collect::<Result<_>>()?;
        let mut raw: Vec<Raw> = made.iter().map(|descriptor| descriptor.0).collect();
        let room = raw.len();
        // SAFETY: these are descriptors of this kind, which the library fills in.
        let count = unsafe { self.get(attribute, DESCRIPTOR, room, raw.as_mut_ptr().cast()) }?;
        made.truncate(count);
        Ok(made)
    }

    /// Hands the plan that this is to the handle's stream, with these addresses.
    ///
    /// # Safety
    /// Every address of `pack` has what the plan reads and writes there, when the stream comes to it;
    /// those on the host have it now.
    pub(super) unsafe fn execute(&self, handle: Handle, pack: &Self) -> Result<()> {
        let library = functions().map_err(candle_core::Error::msg)?;
        // SAFETY: the caller's promise.
        let status = unsafe { (library.execute)(handle.0, self.0, pack.0) };
        library.check(status, "attention")
    }
}
