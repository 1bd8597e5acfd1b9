//! Safetensors files, in and out.
//!
//! A model's files may come from anywhere, so their headers are checked here before a single
//! offset in them is believed, and tensors are read one at a time, never mapped.

mod header;
mod image;
mod reader;
mod values;
mod writer;

pub use image::SafetensorsImage;
pub use reader::SafetensorsFile;
pub(crate) use reader::WeightFiles;
pub(crate) use writer::is_beyond_f16;
pub use writer::{MAX_SHARD_BYTES, write_safetensors, write_shards};
