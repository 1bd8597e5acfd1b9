//! A single-instance lock held by the kernel, which survives kill -9 and fork.
//!
//! The lock is `flock(2)` on a file that is never removed: it ends with its process however that
//! ends, and no second process can lock a namesake of an unlinked file. The text in the file only
//! names the holder, for the message that the second process prints.
//!
//! [`lock_state_dir`] is for a folder that one process may change, [`lock_gpu`] for a GPU that one
//! trainer may fill, by its UUID (indices change with `CUDA_VISIBLE_DEVICES`).
//!
//! ```
//! use chandler_daemon_lock::{LockError, lock_state_dir};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let lock = lock_state_dir(folder.path())?;
//! match lock_state_dir(folder.path()) {
//!     Err(LockError::Held { holder: Some(holder), .. }) => {
//!         assert_eq!(holder.pid, std::process::id());
//!     }
//!     other => panic!("{other:?}"),
//! }
//! drop(lock);
//! lock_state_dir(folder.path())?;
//! # Ok(())
//! # }
//! ```
#![deny(missing_docs)]

mod error;
mod holder;
mod lock;

pub use error::LockError;
pub use holder::Holder;
pub use lock::{Lock, gpu_lock_path, holder_of, lock_file, lock_gpu, lock_state_dir};
