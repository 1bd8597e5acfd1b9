//! The header of a safetensors file: where each tensor's bytes lie.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ModelError;
use crate::foreign::begins_as_pickle;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Tensors of one file; models of hundreds of experts have some ten thousands.
const MAX_TENSORS: usize = 250_000;
/// Dimensions of a tensor.
const MAX_RANK: usize = 16;
/// Of a tensor's name, which messages repeat.
const MAX_NAME_BYTES: usize = 1024;

/// A tensor's type and shape, and where its bytes begin in the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) start: u64,
    pub(super) bytes: usize,
}

/// Reads and checks the header of `file`, which was opened at `path` and stands at its beginning.
pub(super) fn read(mut file: &File, path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let unreadable = |source| ModelError::Read { path: path.to_path_buf(), source };
    let bad = |reason: String| ModelError::BadSafetensors { path: path.to_path_buf(), reason };
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    if file_bytes < 8 {
        return Err(bad(format!("it has only {file_bytes} bytes")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(unreadable)?;
    if begins_as_pickle(&length) {
        return Err(ModelError::Pickle { path: path.to_path_buf() });
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return Err(bad(format!("its header would be {length} bytes of a file of {file_bytes}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|error| bad(format!("its header is not understood: {error}")))?;
    let data_start = 8 + length;
    entries(header, data_start, file_bytes - data_start).map_err(bad)
}

/// The tensors, which must fill the data from its first byte to its last, each byte once.
fn entries(
    header: Header,
    data_start: u64,
    data_bytes: u64,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut ranges = Vec::with_capacity(header.0.len());
    let mut entries = BTreeMap::new();
    for (name, Info { dtype, shape, data_offsets: (begin, end) }) in header.0 {
        let bits = shape.0.iter().try_fold(dtype.bitsize(), |n, d| n.checked_mul(*d));
        let fits = begin <= end && end <= data_bytes;
        if !fits || bits.map(|bits| bits as u64) != (end - begin).checked_mul(8) {
            return Err(format!(
                "tensor {name:?} of shape {:?} claims bytes {begin} to {end} of {data_bytes}",
                shape.0
            ));
        }
        ranges.push((begin, end));
        let (start, bytes) = (data_start + begin, (end - begin) as usize);
        let entry = Entry { dtype, shape: shape.0, start, bytes };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name:?} appears twice"));
        }
    }
    ranges.sort_unstable();
    let mut filled = 0;
    for (begin, end) in ranges {
        match begin.cmp(&filled) {
            std::cmp::Ordering::Less => {
                return Err(format!("two tensors share the bytes from {begin} to {filled}"));
            }
            std::cmp::Ordering::Greater => {
                return Err(format!("no tensor has the bytes from {filled} to {begin}"));
            }
            std::cmp::Ordering::Equal => filled = end,
        }
    }
    if filled != data_bytes {
        return Err(format!("no tensor has the bytes from {filled} to {data_bytes}"));
    }
    Ok(entries)
}

/// What the header says about a tensor.
#[derive(serde::Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// The header's entries as they stand, duplicates included.
struct Header(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut entries = vec![];
                while let Some(name) = map.next_key::<String>()? {
                    if name.len() > MAX_NAME_BYTES {
                        let bytes = name.len();
                        return Err(M::Error::custom(format!("a name has {bytes} bytes")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if entries.len() == MAX_TENSORS {
                        return Err(M::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A shape that is read no further than any tensor goes.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
                let mut shape = vec![];
                while let Some(dimension) = items.next_element()? {
                    if shape.len() == MAX_RANK {
                        let reason = format!("a tensor has more than {MAX_RANK} dimensions");
                        return Err(A::Error::custom(reason));
                    }
                    shape.push(dimension);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}
