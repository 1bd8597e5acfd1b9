//! The tensors of a folder, over however many files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use serde::Deserialize;

use super::header::{self, Entry};
use super::values::{self, Unread};
use crate::{ModelError, foreign};

/// Where every tensor of a model or adapter folder is.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    folder: PathBuf,
    tensors: BTreeMap<String, (Arc<Shard>, Entry)>,
}

/// A file that stays open: what is put under its name later has no part in the model.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// The files of a model folder: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists. A model that is put in place of this one meanwhile
    /// is read instead, and never a part of each.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        foreign::of_one_folder(folder, || Self::open_now(folder))
    }

    fn open_now(folder: &Path) -> Result<Self, ModelError> {
        let single = folder.join("model.safetensors");
        if single.exists() {
            return Self::of_files(folder, [single]);
        }
        let index_path = folder.join("model.safetensors.index.json");
        if !index_path.exists() {
            if let Some(path) = foreign::pickle_in(folder) {
                return Err(ModelError::Pickle { path });
            }
            let reason = "there is neither model.safetensors nor model.safetensors.index.json";
            let source = io::Error::new(io::ErrorKind::NotFound, reason);
            return Err(ModelError::Read { path: folder.to_path_buf(), source });
        }
        let index: Index = serde_json::from_str(&foreign::read_json(&index_path)?)
            .map_err(|source| ModelError::Json { path: index_path.clone(), source })?;
        let files = Self::of_files(folder, shards(folder, &index, &index_path)?)?;
        files.agree_with(&index, index_path)
    }

    /// Every tensor must be where the index says that it is.
    fn agree_with(self, index: &Index, path: PathBuf) -> Result<Self, ModelError> {
        let is_there = |(name, shard): &(&String, &String)| {
            let file = self.tensors.get(*name).and_then(|(shard, _)| shard.path.file_name());
            file == Some(OsStr::new(shard.as_str()))
        };
        match index.weight_map.iter().find(|entry| !is_there(entry)) {
            Some((name, shard)) => {
                let reason =
                    format!("it says that tensor {name:?} is in {shard:?}, which is not so");
                Err(ModelError::BadSafetensors { path, reason })
            }
            None => Ok(self),
        }
    }

    /// Exactly these files.
    pub(crate) fn of_files(
        folder: &Path,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        for path in files {
            foreign::check_inside(folder, &path)?;
            let file = foreign::open_regular(&path)?;
            let shard = Arc::new(Shard { path, file });
            for (name, entry) in header::read(&shard.file, &shard.path)? {
                if tensors.insert(name.clone(), (Arc::clone(&shard), entry)).is_some() {
                    let reason = format!("tensor {name:?} is also in another shard");
                    let path = shard.path.clone();
                    return Err(ModelError::BadSafetensors { path, reason });
                }
            }
        }
        Ok(Self { folder: folder.to_path_buf(), tensors })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.1.shape)
    }

    /// The type most of the folder is stored in.
    pub(crate) fn stored_dtype(&self) -> Option<DType> {
        let bytes_of = |wanted: Dtype| -> usize {
            let same = self.tensors.values().filter(|(_, entry)| entry.dtype == wanted);
            same.map(|(_, entry)| entry.bytes).sum()
        };
        let known =
            [(Dtype::F32, DType::F32), (Dtype::BF16, DType::BF16), (Dtype::F16, DType::F16)];
        known.into_iter().max_by_key(|(stored, _)| bytes_of(*stored)).map(|(_, dtype)| dtype)
    }

    /// Reads one tensor, which must have `shape` and be finite, and converts it to `dtype`.
    pub(crate) fn read(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let Some((shard, entry)) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                name: name.to_owned(),
                folder: self.folder.clone(),
            });
        };
        if entry.shape != shape {
            return Err(ModelError::Misshapen {
                name: name.to_owned(),
                file: shard.path.clone(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let stored = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F64 => DType::F64,
            // Codes of an optimizer; as a weight it would be a quantized one.
            Dtype::U8 if dtype == DType::U8 => DType::U8,
            other => {
                return Err(ModelError::StoredDtype {
                    name: name.to_owned(),
                    file: shard.path.clone(),
                    dtype: format!("{other:?}"),
                });
            }
        };
        let path = || shard.path.clone();
        let tensor =
            values::read(&shard.file, entry.start, shape, stored).map_err(|why| match why {
                Unread::Io(source) => ModelError::Read { path: path(), source },
                Unread::NonFinite(count) => {
                    ModelError::NonFinite { name: name.to_owned(), file: path(), count }
                }
                Unread::Candle(error) => error.into(),
            })?;
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }
}

/// One safetensors file whose tensors are read by name.
#[derive(Debug)]
pub struct SafetensorsFile(WeightFiles);

impl SafetensorsFile {
    /// Reads and checks the header.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Ok(Self(WeightFiles::of_files(path, [path.to_owned()])?))
    }

    /// Names and shapes of its tensors, by name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.0.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry.shape.as_slice()))
    }

    /// Reads one tensor, which must have `shape` and be finite, and converts it to `dtype`.
    pub fn read(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        self.0.read(name, shape, dtype, device)
    }
}

/// The files that an index names, each a safetensors file of its folder.
fn shards(folder: &Path, index: &Index, path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut shards: Vec<&String> = index.weight_map.values().collect();
    shards.sort();
    shards.dedup();
    for shard in &shards {
        let shard_path = Path::new(shard.as_str());
        if !is_plain_name(shard) {
            let reason = format!("it names a shard {shard:?} that is not a file of this folder");
            return Err(ModelError::BadSafetensors { path: path.to_path_buf(), reason });
        }
        if foreign::is_pickle(shard_path) {
            return Err(ModelError::Pickle { path: folder.join(shard_path) });
        }
    }
    Ok(shards.into_iter().map(|shard| folder.join(shard)).collect())
}

fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use chandler_durable::{RealFs, rename_durably};

    use super::*;
    use crate::weights::write_shards;

    /// A model of two tensors, each in a shard of its own.
    fn put(folder: &Path, value: f32) {
        std::fs::create_dir_all(folder).unwrap();
        let tensor = Tensor::full(value, 4, &Device::Cpu).unwrap();
        let tensors = [("a", &tensor), ("b", &tensor)];
        write_shards(&RealFs, folder, &tensors, DType::F32, 16).unwrap();
    }

    fn value(files: &WeightFiles, name: &str) -> f32 {
        let tensor = files.read(name, &[4], DType::F32, &Device::Cpu).unwrap();
        tensor.to_vec1::<f32>().unwrap()[0]
    }

    #[test]
    fn a_model_that_is_replaced_while_it_is_read_stays_the_one_that_was_opened() {
        let place = tempfile::tempdir().unwrap();
        let (model, next) = (place.path().join("model"), place.path().join("model.next"));
        put(&model, 1.0);
        let files = WeightFiles::open(&model).unwrap();
        assert_eq!(value(&files, "a"), 1.0);
        put(&next, 2.0);
        std::fs::remove_dir_all(&model).unwrap();
        rename_durably(&RealFs, &next, &model).unwrap();
        assert_eq!(value(&files, "b"), 1.0);
        assert_eq!(value(&WeightFiles::open(&model).unwrap(), "b"), 2.0);
    }
}
