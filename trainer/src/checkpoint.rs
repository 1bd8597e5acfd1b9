//! Checkpoints: everything that the next step depends on, in a sealed folder.
//!
//! `weights.safetensors` holds the trainable parameters as precisely as the run has them,
//! `optimizer.safetensors` both moments, and the manifest the position and the fingerprint of the run. What is frozen is read
//! from the base model again. The rate, the order of the rows and the batches are functions of the
//! step.

use std::path::Path;

use candle_core::{Device, Tensor};
use chandler_durable::{Fs, RealFs, SealedFolder, Verdict, verify};
use chandler_model::{SafetensorsFile, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Fit, MomentsDtype, Observer, TrainError, Trainer};

/// What the names of checkpoint folders begin with; the step follows.
pub const CHECKPOINT_PREFIX: &str = "checkpoint-";

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The step of a checkpoint folder, by its name.
pub fn checkpoint_step(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok()
}

/// What the manifest says beside the files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    step: u64,
    num_tokens: u64,
    /// A step that is cut otherwise rounds otherwise.
    #[serde(default)]
    fit: Fit,
    fingerprint: Value,
    extra: Value,
}

impl Trainer<'_> {
    /// Writes a checkpoint to `path`, where nothing may be yet.
    pub fn write_checkpoint(
        &self,
        fs: &dyn Fs,
        path: &Path,
        extra: Value,
    ) -> Result<(), TrainError> {
        let folder = SealedFolder::begin(fs, path)?;
        let masters: Vec<(&str, &Tensor)> = self.optimizer.masters(&self.model).collect();
        write_safetensors(fs, &folder.path().join(WEIGHTS), &masters, None)?;
        let moments = self.optimizer.moments(&self.model);
        let moments: Vec<(&str, &Tensor)> =
            moments.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        write_safetensors(fs, &folder.path().join(OPTIMIZER), &moments, None)?;
        let (step, num_tokens, fit) = (self.step, self.num_tokens, self.fit);
        let fingerprint = self.fingerprint();
        folder.seal(json!(State { step, num_tokens, fit, fingerprint, extra }))?;
        Ok(())
    }

    /// Takes over a checkpoint that this very run wrote, and returns what its observer left there.
    ///
    /// Every byte is verified before the first one is believed.
    pub fn resume(&mut self, path: &Path) -> Result<Value, TrainError> {
        let bad = |reason: String| TrainError::BadCheckpoint { path: path.to_owned(), reason };
        let manifest = match verify(&RealFs, path)? {
            Verdict::Whole(manifest) => manifest,
            Verdict::Broken(broken) => return Err(bad(broken.to_string())),
        };
        let state: State =
            serde_json::from_value(manifest.extra).map_err(|error| bad(error.to_string()))?;
        self.check_fingerprint(path, &state.fingerprint)?;
        let weights = SafetensorsFile::open(&path.join(WEIGHTS))?;
        let moments = SafetensorsFile::open(&path.join(OPTIMIZER))?;
        let read_into = |file: &SafetensorsFile, name: &str, tensor: &Tensor| {
            let stored = file.read(name, tensor.dims(), tensor.dtype(), &Device::Cpu)?;
            Ok::<_, TrainError>(tensor.slice_set(&stored, 0, 0)?)
        };
        for (name, tensor) in self.optimizer.masters(&self.model) {
            read_into(&weights, name, tensor)?;
        }
        for (name, tensor) in self.optimizer.moments(&self.model) {
            read_into(&moments, &name, &tensor)?;
        }
        self.optimizer.round_masters(&self.model)?;
        (self.step, self.num_tokens) = (state.step, state.num_tokens);
        self.fit = state.fit.resumed(self.fit);
        Ok(state.extra)
    }

    pub(crate) fn checkpoint_for(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let path = observer.checkpoint_path(self.step).map_err(TrainError::Observer)?;
        let Some(path) = path else { return Ok(()) };
        let extra = observer.checkpoint_extra();
        self.write_checkpoint(&RealFs, &path, extra)?;
        observer.checkpoint_written(self.step, &path).map_err(TrainError::Observer)
    }

    /// What must be the same for a resumed run to be the same run.
    fn fingerprint(&self) -> Value {
        let settings = &self.settings;
        let numeric = json!({
            "learning_rate": settings.learning_rate,
            "adam": [settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon],
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "schedule": settings.lr_scheduler_type,
            "warmup": settings.warmup_of(self.plan.total_steps()),
        });
        let plain = settings.moments == MomentsDtype::F32
            && settings.master_weights
            && !settings.optimizer_in_backward;
        // Null where it is as it always was, so that older checkpoints still fit.
        let optimizer = (!plain).then(|| {
            json!([settings.moments, settings.master_weights, settings.optimizer_in_backward])
        });
        json!({
            "rows": self.rows.len(),
            "total_steps": self.plan.total_steps(),
            "batch": [settings.per_device_train_batch_size, settings.gradient_accumulation_steps],
            "order": [json!(settings.shuffle), json!(settings.seed)],
            "hyperparameters": numeric,
            "optimizer": optimizer,
            "dtype": self.model.dtype().as_str(),
            "trainable": self.optimizer.masters(&self.model).count(),
        })
    }

    fn check_fingerprint(&self, path: &Path, was: &Value) -> Result<(), TrainError> {
        let is = self.fingerprint();
        for what in [
            "rows",
            "total_steps",
            "batch",
            "order",
            "hyperparameters",
            "optimizer",
            "dtype",
            "trainable",
        ] {
            if was[what] != is[what] {
                let (path, was) = (path.to_owned(), was[what].to_string());
                return Err(TrainError::OtherRun { path, what, was, is: is[what].to_string() });
            }
        }
        Ok(())
    }
}
