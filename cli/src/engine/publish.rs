//! Models and adapters on the disk, for others to load.

use std::path::Path;

use candle_core::{DType, Tensor};
use chandler_durable::{Fs, RealFs, SealedFolder, create_folder_all, is_there, remove_folder};
use chandler_model::{AdapterBase, CausalLm, write_adapter, write_model};
use chandler_trainer::Trainer;
use rustix::fs::{CWD, RenameFlags};

use super::EngineError;
use super::saving::ToldFs;
use crate::logging::Progress;
use crate::place::Place;

/// Writes what a run made to `folder`: the model with the companions of the one in `base`, or the
/// adapter to `base_name` where one was trained.
pub(crate) fn write_output(
    trainer: &Trainer,
    folder: &Path,
    base: &Path,
    base_name: &AdapterBase,
    progress: &Progress,
) -> Result<(), EngineError> {
    create_folder_all(&RealFs, folder)?;
    let values = trainer.best_values();
    match trainer.model().lora() {
        Some(_) => write_adapter_folder(trainer.model(), &values, folder, base_name),
        None => {
            let config = trainer.model().config();
            let fs = ToldFs::new(progress, "model", bytes_in_f32(&values));
            Ok(write_model(&fs, folder, config, &values, DType::F32, base)?)
        }
    }
}

/// Writes the adapter among `values` in peft's format.
pub(crate) fn write_adapter_folder(
    model: &CausalLm,
    values: &[(&str, &Tensor)],
    folder: &Path,
    base: &AdapterBase,
) -> Result<(), EngineError> {
    let Some(lora) = model.lora() else { return Ok(()) };
    let adapter: Vec<(&str, &Tensor)> =
        values.iter().filter(|(name, _)| name.contains(".lora_")).copied().collect();
    write_adapter(&RealFs, folder, lora, base, &adapter, DType::F32)?;
    Ok(())
}

/// Puts the model of a finished run in place of `place` in one step, adapters merged; whoever reads
/// it finds the old one or the new one whole. `extra` goes into its manifest.
pub(crate) fn write_merged_model(
    trainer: &mut Trainer,
    place: &Path,
    base: &Path,
    extra: serde_json::Value,
    progress: &Progress,
) -> Result<(), EngineError> {
    trainer.merge_adapter()?;
    let next = place.with_file_name("model.next");
    if is_there(&next)? {
        remove_folder(&RealFs, &next)?;
    }
    let folder = SealedFolder::begin(&RealFs, &next)?;
    let values = trainer.best_values();
    let config = trainer.model().config();
    let fs = ToldFs::new(progress, "model", bytes_in_f32(&values));
    write_model(&fs, folder.path(), config, &values, DType::F32, base)?;
    folder.seal(extra)?;
    exchange(&next, place)
}

/// What the largest part of a model takes on the disk.
fn bytes_in_f32(values: &[(&str, &Tensor)]) -> u64 {
    values.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum()
}

/// Renames `next` to `place`; what stood there is removed afterwards.
fn exchange(next: &Path, place: &Path) -> Result<(), EngineError> {
    let parent = place.parent().unwrap_or(Path::new("."));
    let failed = |source: std::io::Error| EngineError::Write { path: place.to_owned(), source };
    if !is_there(place)? {
        RealFs.rename_new(next, place).map_err(failed)?;
        return RealFs.sync_folder(parent).map_err(failed);
    }
    match rustix::fs::renameat_with(CWD, next, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => {
            RealFs.sync_folder(parent).map_err(failed)?;
            Ok(remove_folder(&RealFs, next)?)
        }
        // A file system that cannot exchange: there is a moment without a model.
        Err(_) => {
            remove_folder(&RealFs, place)?;
            RealFs.rename_new(next, place).map_err(failed)?;
            RealFs.sync_folder(parent).map_err(failed)
        }
    }
}

/// A folder of files for others: whole under its name, or not there. `fill` writes the files, each by
/// a durable write.
pub(crate) fn in_new_folder(
    folder: &Path,
    fill: impl FnOnce(&Path) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (Place::File(folder) | Place::Stream(folder)) = Place::of(folder);
    let new = SealedFolder::begin(&RealFs, &folder)?;
    fill(new.path())?;
    Ok(new.place()?)
}

/// Writes a model, adapters merged, to a new folder in `dtype`.
pub(crate) fn export(
    model: &mut CausalLm,
    source: &Path,
    folder: &Path,
    dtype: DType,
) -> Result<(), EngineError> {
    model.merge_adapter()?;
    let values: Vec<(&str, &Tensor)> =
        model.params().iter().map(|(_, param)| (param.name.as_str(), &param.value)).collect();
    let write = |place: &Path| write_model(&RealFs, place, model.config(), &values, dtype, source);
    in_new_folder(folder, |place| Ok(write(place)?))
}
