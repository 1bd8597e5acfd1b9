//! Files of strangers, opened and read with bounds.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::DataError;

/// Opens what is a regular file, or a link to one; a pipe would be waited for without end.
pub(crate) fn open_regular(path: &Path) -> Result<File, DataError> {
    let opened = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_file() {
            File::open(path)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
    });
    opened.map_err(|source| DataError::Read { path: path.to_owned(), source })
}

/// Reads a file whole unless it is larger than `max_bytes`; `None` where there is none.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, DataError> {
    let file = match open_regular(path) {
        Ok(file) => file,
        Err(DataError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = vec![];
    let read = file.take(max_bytes + 1).read_to_end(&mut bytes);
    read.map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > max_bytes {
        return Err(DataError::TooLarge { path: path.to_owned(), max_bytes });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(read_bounded(&path, 3).unwrap().is_none());
        chandler_durable::write(&path, b"abc").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"abc");
        let error = read_bounded(&path, 2).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { max_bytes: 2, .. }), "{error}");
        assert!(read_bounded(folder.path(), 3).is_err());
    }
}
