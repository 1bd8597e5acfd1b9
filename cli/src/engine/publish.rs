//! Models and adapters on the disk, for others to load.

use std::path::Path;

use candle_core::{DType, Tensor};
use chandler_durable::{
    Fs, RealFs, SealedFolder, Verdict, create_folder_all, is_there, remove_folder, verify,
};
use chandler_model::{AdapterBase, CausalLm, write_adapter, write_model};
use chandler_trainer::Trainer;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::EngineError;
use super::saving::ToldFs;
use crate::logging::Progress;
use crate::place::Place;

/// The names, beside the model's own, of the one that is being written and, where a file system
/// cannot exchange two names, of the one before.
const NEXT: &str = "model.next";
const PREVIOUS: &str = "model.previous";

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
    let next = place.with_file_name(NEXT);
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
    if !is_there(place)? {
        return rename(next, place);
    }
    if exchanged(next, place)? {
        return Ok(remove_folder(&RealFs, next)?);
    }
    exchange_by_renames(next, place)
}

/// Exchanges the names of two folders, and brings that to the disk; `false` where the file system cannot.
pub(super) fn exchanged(one: &Path, other: &Path) -> Result<bool, EngineError> {
    match rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
        Err(errno) => return Err(unwritten(other, errno.into())),
    }
    let [one, other] = [one, other].map(|path| path.parent().unwrap_or(Path::new(".")));
    for parent in [Some(other), Some(one).filter(|one| *one != other)].into_iter().flatten() {
        RealFs.sync_folder(parent).map_err(|source| unwritten(parent, source))?;
    }
    Ok(true)
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

/// The same in two steps, between which the old model has another name: [`finish_exchange`] knows it.
fn exchange_by_renames(next: &Path, place: &Path) -> Result<(), EngineError> {
    let previous = place.with_file_name(PREVIOUS);
    if is_there(&previous)? {
        remove_folder(&RealFs, &previous)?;
    }
    rename(place, &previous)?;
    rename(next, place)?;
    Ok(remove_folder(&RealFs, &previous)?)
}

/// Finishes an exchange that a crash cut in two: where nothing stands at `place`, the next model takes
/// it if it is whole, else the one before.
pub(super) fn finish_exchange(place: &Path) -> Result<(), EngineError> {
    let (next, previous) = (place.with_file_name(NEXT), place.with_file_name(PREVIOUS));
    if !is_there(&previous)? {
        return Ok(());
    }
    if !is_there(place)? {
        let is_whole = is_there(&next)? && matches!(verify(&RealFs, &next)?, Verdict::Whole(_));
        let found = if is_whole { &next } else { &previous };
        tracing::warn!("{} takes the place of {} again", found.display(), place.display());
        rename(found, place)?;
    }
    if is_there(&previous)? {
        remove_folder(&RealFs, &previous)?;
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), EngineError> {
    let parent = to.parent().unwrap_or(Path::new("."));
    RealFs.rename_new(from, to).map_err(|source| unwritten(to, source))?;
    RealFs.sync_folder(parent).map_err(|source| unwritten(to, source))
}

fn unwritten(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Write { path: path.to_owned(), source }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A model folder whose one file says this.
    fn put(folder: &Path, text: &str) {
        let mut sealed = SealedFolder::begin(&RealFs, folder).unwrap();
        sealed.add_bytes("config.json", text.as_bytes()).unwrap();
        sealed.seal(serde_json::Value::Null).unwrap();
    }

    fn text(folder: &Path) -> Option<String> {
        std::fs::read_to_string(folder.join("config.json")).ok()
    }

    #[test]
    fn a_file_system_that_cannot_exchange_comes_to_the_same() {
        type Exchange = fn(&Path, &Path) -> Result<(), EngineError>;
        for exchanged in [exchange as Exchange, exchange_by_renames] {
            let folder = tempfile::tempdir().unwrap();
            let (place, next) = (folder.path().join("model"), folder.path().join(NEXT));
            put(&place, "old");
            put(&next, "new");
            exchanged(&next, &place).unwrap();
            assert_eq!(text(&place).as_deref(), Some("new"));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn an_exchange_that_was_cut_in_two_is_finished() {
        // Which of model, next and previous there are, whether the next is whole, and what the model
        // is then.
        for (place, next, whole, previous, expected) in [
            (true, true, true, false, Some("place")),
            (false, true, true, true, Some("next")),
            (false, true, false, true, Some("previous")),
            (false, false, false, true, Some("previous")),
            (true, false, false, true, Some("place")),
            // The first model of all was never in its place: its job goes on from a checkpoint.
            (false, true, true, false, None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let all =
                [(place, "model", "place"), (next, NEXT, "next"), (previous, PREVIOUS, "previous")];
            for (is_there, name, says) in all {
                if is_there {
                    put(&path(name), says);
                }
            }
            if next && !whole {
                chandler_durable::write(&path(NEXT).join("config.json"), b"torn").unwrap();
            }
            finish_exchange(&path("model")).unwrap();
            assert_eq!(text(&path("model")).as_deref(), expected);
            assert!(!path(PREVIOUS).exists());
        }
    }
}
