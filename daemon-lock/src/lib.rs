//! A single-instance lock held by the kernel, which survives kill -9 and fork.
//!
//! The lock is `flock(2)` on a file that is never removed: it ends with its process however that
//! ends. The text in the file only names the holder, for the message that the second process
//! prints; a text that a killed process left, or one that could not be written, decides nothing.
//!
//! [`lock_state_dir`] is for a folder that one process may change, [`lock_gpu`] for a GPU that one
//! trainer may fill, by its UUID (indices change with `CUDA_VISIBLE_DEVICES`).
//!
//! What could make two owners, and what is done about it:
//!
//! - Somebody removes or replaces the file: whoever locks compares the file it locked with the one
//!   that the path leads to, [`lock_state_dir`] locks the folder besides, and the owner finds out by
//!   [`Lock::still_ours`].
//! - A process is killed: the kernel ends its lock with it.
//! - A child that was forked without exec keeps the descriptor, and the lock with it, when its
//!   parent has ended: nobody else gets the lock, and [`LockError::Kept`] names the child.
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
mod place;
mod process;
mod take;

pub use error::{LockError, Loss};
pub use holder::Holder;
pub use lock::{Lock, gpu_lock_path, lock_file, lock_gpu, lock_state_dir};
pub use process::Keeper;
pub use take::{holder_of, holder_of_state_dir};
