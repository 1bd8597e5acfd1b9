//! The checkpoints of a run: going on from the newest, which of them stay, and what they say.

use std::path::Path;

use chandler_durable::{
    Manifest, RealFs, Removal, is_there, newest_good, remove_folder, remove_folder_meanwhile,
};
use chandler_evaluator::Better;
use chandler_trainer::{CHECKPOINT_PREFIX, TrainError, Trainer, checkpoint_step};
use serde_json::Value;

use super::EngineError;
use super::best::Best;
use super::snapshots::{bytes_in, names_in};
use super::trend::Trend;
use crate::config::EvalConfig;
use crate::daemon::{CheckpointFacts, checkpoints_to_remove};
use crate::store::EvalRow;

/// What a checkpoint is told by from those of a run on another model.
const BASE: &str = "base model";

/// What a checkpoint takes on the disk: the trained weights and two moments, in f32.
pub(crate) fn checkpoint_bytes(trainer: &Trainer) -> u64 {
    let trainable = trainer.model().params().trainable();
    trainable.map(|(_, param)| 12 * param.value.elem_count() as u64).sum()
}

/// Where a run begins.
#[derive(Debug, Default)]
pub(crate) struct GoneOn {
    /// The step that a checkpoint was written after; `None` for a new run.
    pub(crate) resumed_at: Option<u64>,
    /// The evaluation before that checkpoint.
    pub(crate) last_eval: Option<EvalRow>,
    /// The best until then.
    pub(crate) best: Best,
    /// The losses until then.
    pub(crate) trend: Trend,
}

/// Goes on from the newest checkpoint that is whole, if there is one. One of a run that began from
/// another model than `base` is an error, and nothing of it has been taken over.
pub(crate) fn resume(
    trainer: &mut Trainer,
    folder: &Path,
    base: &str,
) -> Result<GoneOn, EngineError> {
    let found = newest_good(&RealFs, folder, CHECKPOINT_PREFIX)?;
    for broken in &found.quarantined {
        let (was, is) = (broken.was.display(), broken.is.display());
        tracing::warn!("{was} is broken ({}) and was moved to {is}", broken.reason);
    }
    let Some((path, manifest)) = found.good else { return Ok(GoneOn::default()) };
    if let Some(was) = base_of(&manifest).filter(|was| *was != base) {
        let (was, is) = (was.to_owned(), base.to_owned());
        return Err(TrainError::OtherRun { path, what: BASE, was, is }.into());
    }
    let planned = trainer.fit();
    let resumed = trainer.resume(&path)?;
    if trainer.fit().rows != planned.rows {
        tracing::warn!(
            "the memory plan has {planned}; the run goes on as it was, so that its sums are rounded \
             as before: {}",
            trainer.fit()
        );
    }
    if let Some(why) = resumed.rounds_differently {
        tracing::warn!("from here on the run is not the same bit for bit: {why}");
    }
    tracing::info!("goes on after step {} ({})", trainer.steps_done(), path.display());
    Ok(GoneOn {
        resumed_at: Some(trainer.steps_done()),
        last_eval: serde_json::from_value(resumed.extra["eval"].clone()).unwrap_or_default(),
        best: serde_json::from_value(resumed.extra["best"].clone()).unwrap_or_default(),
        trend: serde_json::from_value(resumed.extra["trend"].clone()).unwrap_or_default(),
    })
}

/// As [`resume`], for a job whose model may have learned from another file since it was stopped:
/// then its checkpoints are of no use, and it begins anew from the model that there is now.
pub(super) fn resume_or_begin_anew(
    trainer: &mut Trainer,
    folder: &Path,
    base: &str,
) -> Result<GoneOn, EngineError> {
    match resume(trainer, folder, base) {
        Err(EngineError::Train(error @ TrainError::OtherRun { what: BASE, .. })) => {
            tracing::warn!(
                "{error}: the model has learned from another file since, and this one begins anew"
            );
            clear_checkpoints(folder)?;
            Ok(GoneOn::default())
        }
        resumed => resumed,
    }
}

/// The model that the run of a checkpoint began from; `None` where it does not say.
fn base_of(manifest: &Manifest) -> Option<&str> {
    manifest.extra.pointer("/extra/base")?.as_str()
}

/// Removes every checkpoint in a folder: a run that begins anew must not be mistaken for the one
/// before it.
pub(crate) fn clear_checkpoints(folder: &Path) -> Result<(), EngineError> {
    for name in names_in(folder) {
        let path = folder.join(name);
        if checkpoint_step(&path).is_some() {
            tracing::info!("removing the earlier run's {}", path.display());
            remove_folder(&RealFs, &path)?;
        }
    }
    Ok(())
}

/// What the checkpoints in a folder take on the disk, as far as it can be read.
pub(super) fn bytes_of_checkpoints(folder: &Path) -> u64 {
    let checkpoints = names_in(folder).into_iter().map(|name| folder.join(name));
    let checkpoints = checkpoints.filter(|path| checkpoint_step(path).is_some());
    checkpoints.map(|checkpoint| bytes_in(&checkpoint)).sum()
}

/// Leaves a checkpoint of a run that was stopped, unless its step has one already; the step.
pub(crate) fn leave_checkpoint(
    trainer: &Trainer,
    folder: &Path,
    resumed_at: Option<u64>,
    extra: Value,
) -> Result<u64, EngineError> {
    let step = trainer.steps_done();
    let path = folder.join(format!("{CHECKPOINT_PREFIX}{step}"));
    if step > 0 && resumed_at != Some(step) && !is_there(&path)? {
        trainer.write_checkpoint(&RealFs, &path, extra)?;
    }
    Ok(step)
}

/// Removes the checkpoints beside `newest` that are neither among the newest nor among the best: their
/// names now, their bytes while training goes on.
pub(crate) fn remove_old_checkpoints(
    newest: &Path,
    keep_last: usize,
    keep_best: usize,
    config: &EvalConfig,
    best: &Best,
) -> Result<Vec<Removal>, EngineError> {
    let Some(folder) = newest.parent() else { return Ok(vec![]) };
    let (facts, keep_best) = (
        checkpoint_facts(folder, &config.metric_for_best_model, best),
        keep_best.max(usize::from(config.load_best_model_at_end)),
    );
    let better = Better::of_metric(&config.metric_for_best_model);
    let old = checkpoints_to_remove(&facts, keep_last, keep_best, better).into_iter();
    Ok(old.map(|old| remove_folder_meanwhile(&old)).collect::<Result<_, _>>()?)
}

/// What decides about the checkpoints of a folder, by this metric. One that was left by a stop
/// within its evaluation does not know how good it is; the run that went on from it does.
pub(super) fn checkpoint_facts(folder: &Path, metric: &str, best: &Best) -> Vec<CheckpointFacts> {
    let fact = |name: String| {
        let path = folder.join(name);
        let step = checkpoint_step(&path)?;
        let manifest = std::fs::read_to_string(path.join("manifest.json")).ok()?;
        let manifest: Value = serde_json::from_str(&manifest).ok()?;
        let eval = manifest.pointer("/extra/extra/eval").cloned().unwrap_or_default();
        let eval: Option<EvalRow> = serde_json::from_value(eval).unwrap_or_default();
        // An earlier evaluation says nothing of this checkpoint.
        let figure = eval.filter(|eval| eval.step == step).and_then(|eval| eval.metric(metric));
        Some(CheckpointFacts { path, step, figure: figure.or(best.value_at(step)) })
    };
    names_in(folder).into_iter().filter_map(fact).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(folder: &Path, step: u64, eval: &EvalRow) {
        let path = folder.join(format!("{CHECKPOINT_PREFIX}{step}/manifest.json"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let manifest = json!({ "extra": { "extra": { "eval": eval } } });
        chandler_durable::write(&path, manifest.to_string().as_bytes()).unwrap();
    }

    #[test]
    fn the_bytes_of_checkpoints_are_those_of_their_files() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(bytes_of_checkpoints(&folder.path().join("none")), 0);
        for (place, bytes) in [("checkpoint-3/a", 5), ("checkpoint-12/b", 7), ("other/c", 11)] {
            let path = folder.path().join(place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            chandler_durable::write(&path, &vec![0; bytes]).unwrap();
        }
        assert_eq!(bytes_of_checkpoints(folder.path()), 12);
    }

    #[test]
    fn a_checkpoint_that_a_stop_left_within_its_evaluation_has_a_figure_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let row = |step, loss| EvalRow { step, loss: Some(loss), ..EvalRow::default() };
        put(folder.path(), 2, &row(2, 1.5));
        put(folder.path(), 4, &row(2, 1.5));
        let figures = |best: &Best| {
            let mut facts = checkpoint_facts(folder.path(), "loss", best);
            facts.sort_by_key(|fact| fact.step);
            facts.into_iter().map(|fact| fact.figure).collect::<Vec<_>>()
        };
        let mut best = Best::default();
        assert_eq!(figures(&best), [Some(1.5), None]);
        best.see(&row(4, 1.0), &EvalConfig::default(), true);
        assert_eq!(figures(&best), [Some(1.5), Some(1.0)]);
    }

    #[test]
    fn a_checkpoint_says_which_model_its_run_began_from() {
        let manifest = |extra| Manifest { version: 1, files: vec![], extra };
        let of = |extra| base_of(&manifest(extra)).map(str::to_owned);
        assert_eq!(of(json!({ "extra": { "base": "abc" } })).as_deref(), Some("abc"));
        // As they were written before.
        assert_eq!(of(json!({ "extra": { "eval": null } })), None);
    }
}
