//! The mark that a model carries of the file it learned last: how a crash between the model's
//! publication and the file's settlement is told from one before.

use chandler_durable::{Broken, RealFs, read_manifest};
use serde_json::{Value, json};

use super::error::QueueError;
use crate::state_dir::StateDir;
use crate::store::Job;

/// The mark of a model that has learned from a job's file, for its manifest.
pub fn mark(job: &Job, sha256: &str, report: &Value) -> Value {
    json!({ "job_id": job.id, "queued_at": job.created_at, "sha256": sha256, "report": report })
}

/// The report of a job whose model is the one in `model/`; `None` if that has not learned from it.
pub fn report_of_model(
    state: &StateDir,
    job: &Job,
    sha256: &str,
) -> Result<Option<Value>, QueueError> {
    let folder = state.model();
    let mark = match read_manifest(&RealFs, &folder)? {
        Ok(manifest) => manifest.extra,
        Err(Broken::NoManifest) => return Ok(None),
        // To take this for a no would be to learn from the file twice.
        Err(broken) => return Err(QueueError::BrokenModel { folder, reason: broken.to_string() }),
    };
    // A job that was queued once more is to be learned from once more.
    let queued_at = &mark["queued_at"];
    let same = mark["job_id"] == job.id
        && mark["sha256"] == sha256
        && (queued_at.is_null() || *queued_at == job.created_at);
    Ok(same.then(|| mark["report"].clone()))
}
