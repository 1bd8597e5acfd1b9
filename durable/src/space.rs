//! Room on the disk, asked for before it is needed.

use std::path::Path;

use crate::error::At;
use crate::{DurableError, Fs, Operation, RealFs};

/// Bytes that this user may still write to the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64, DurableError> {
    RealFs.free_bytes(path).at(Operation::FreeSpace, path)
}

/// Fails with [`DurableError::NotEnoughSpace`] unless `needed_bytes` would fit.
///
/// Others may fill the disk a moment later, so that a write must still be ready to fail.
pub fn require_space(fs: &dyn Fs, path: &Path, needed_bytes: u64) -> Result<(), DurableError> {
    let free_bytes = fs.free_bytes(path).at(Operation::FreeSpace, path)?;
    if free_bytes < needed_bytes {
        return Err(DurableError::NotEnoughSpace {
            path: path.to_owned(),
            needed_bytes,
            free_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_is_refused_with_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_space(folder.path()).unwrap() > 0);
        require_space(&RealFs, folder.path(), 1).unwrap();
        let error = require_space(&RealFs, folder.path(), u64::MAX).unwrap_err();
        assert!(error.is_out_of_space());
        let DurableError::NotEnoughSpace { needed_bytes, free_bytes, .. } = error else {
            panic!("another error: {error}");
        };
        assert_eq!(needed_bytes, u64::MAX);
        assert!(free_bytes > 0 && free_bytes < u64::MAX);
    }
}
