//! Files that are whole or absent, after any crash.
//!
//! A file is written under a temporary name in its own folder, flushed, synced, renamed over the
//! old one, and the folder is synced. Whoever reads it finds the old bytes or the new ones, and
//! never a mixture, whether the disk filled up, the process was killed or the power went.
//!
//! A folder of files (a checkpoint, a snapshot) is written the same way by [`SealedFolder`]: its
//! manifest, with the size and the hash of every file, is written last, and the folder is then
//! renamed into place. [`verify`] reads such a folder back, [`newest_good`] picks the newest one
//! that is whole and moves the others to `quarantine/`, where nothing is ever overwritten.
//!
//! ```
//! use chandler_durable::{self as durable, RealFs, SealedFolder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let state = tempfile::tempdir()?;
//! durable::write(&state.path().join("settings.toml"), b"epochs = 3\n")?;
//!
//! let mut checkpoint = SealedFolder::begin(&RealFs, &state.path().join("step-100"))?;
//! checkpoint.add_bytes("weights.bin", &[1, 2, 3])?;
//! checkpoint.seal(serde_json::json!({ "step": 100 }))?;
//!
//! let found = durable::newest_good(&RealFs, state.path(), "step-")?;
//! let (folder, manifest) = found.good.expect("it was sealed a moment ago");
//! assert!(folder.ends_with("step-100"));
//! assert_eq!(manifest.extra["step"], 100);
//! # Ok(())
//! # }
//! ```
//!
//! Every function takes the file system as an [`Fs`], so that a test can hand in a
//! [`FaultFs`](faults::FaultFs) that fails at its Nth operation.

#![deny(missing_docs)]

mod copy;
mod digest;
#[cfg(target_os = "linux")]
mod direct;
mod error;
pub mod faults;
mod file;
mod fs;
mod hashed_fs;
mod manifest;
mod natural_order;
mod quarantine;
mod recovery;
mod rename;
mod sealed_folder;
mod space;
mod temporary;
mod verify;

pub use copy::copy_folder;
pub use error::{DurableError, Operation};
pub use file::{DurableFile, write, write_file, write_sized_with, write_to_free_place, write_with};
pub use fs::{FolderEntry, Fs, FsFile, RealFs};
pub use manifest::{FileHash, FileRecord, MANIFEST_NAME, Manifest};
pub use natural_order::natural_cmp;
pub use quarantine::{QUARANTINE_FOLDER, quarantine};
pub use recovery::{NewestGood, Quarantined, newest_good};
pub use rename::{
    Removal, create_folder_all, is_there, remove_folder, remove_folder_meanwhile, rename_durably,
    rename_to_free_place,
};
pub use sealed_folder::SealedFolder;
pub use space::{free_space, require_space};
pub use temporary::{TEMPORARY_PREFIX, sweep_temporaries};
pub use verify::{Broken, Verdict, read_manifest, verify};
