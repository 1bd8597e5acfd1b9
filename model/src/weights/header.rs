//! The header of a safetensors file: where each tensor's bytes lie.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::ModelError;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor's type and shape, and where its bytes begin in the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) info: TensorInfo,
    pub(super) start: u64,
    pub(super) bytes: usize,
}

/// Reads and checks the header of `path`.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let unreadable = |source| ModelError::Read { path: path.to_path_buf(), source };
    let bad = |reason: String| ModelError::BadSafetensors { path: path.to_path_buf(), reason };
    let mut file = File::open(path).map_err(unreadable)?;
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    if file_bytes < 8 {
        return Err(bad(format!("it has only {file_bytes} bytes")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return Err(bad(format!("its header would be {length} bytes of a file of {file_bytes}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|error| bad(format!("its header is not understood: {error}")))?;
    let data_start = 8 + length;
    let data_bytes = file_bytes - data_start;
    let mut entries = BTreeMap::new();
    for (name, info) in header.0 {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d));
        let fits = begin <= end && end <= data_bytes;
        if !fits || bits.map(|bits| bits as u64) != (end - begin).checked_mul(8) {
            return Err(bad(format!(
                "tensor \"{name}\" of shape {:?} claims bytes {begin} to {end} of {data_bytes}",
                info.shape
            )));
        }
        let entry = Entry { start: data_start + begin, bytes: (end - begin) as usize, info };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(bad(format!("tensor \"{name}\" appears twice")));
        }
    }
    Ok(entries)
}

/// The header's entries as they stand, duplicates included.
struct Header(Vec<(String, TensorInfo)>);

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
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
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
