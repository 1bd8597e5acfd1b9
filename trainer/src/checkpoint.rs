//! Checkpoints: everything that the next step depends on, in a sealed folder.
//!
//! `weights.safetensors` holds the trainable parameters as precisely as the run has them,
//! `optimizer.safetensors` both moments, and the manifest the position and the fingerprint of the run. What is frozen is read
//! from the base model again. The rate, the order of the rows and the batches are functions of the
//! step.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use chandler_durable::{Fs, RealFs, SealedFolder, Verdict, verify};
use chandler_kernels::memory;
use chandler_model::{SafetensorsFile, SafetensorsImage, write_safetensors};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Fit, MomentsDtype, TrainError, Trainer};

/// What the names of checkpoint folders begin with; the step follows.
pub const CHECKPOINT_PREFIX: &str = "checkpoint-";

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The step of a checkpoint folder, by its name.
pub fn checkpoint_step(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok()
}

/// The format that this version writes. Earlier ones are read, later ones refused.
///
/// 1 had no number and did not say which instructions had computed it; 2 had files hashed by SHA-256;
/// 3 did not say which data the run learns from, and its manifest had no seal.
const FORMAT: u32 = 4;

/// The trained parameters in the checkpoint at `folder`, by name, as precisely as the run had them:
/// of an adapter its matrices alone.
///
/// Every byte is verified before the first one is believed.
pub fn checkpoint_weights(folder: &Path) -> Result<Vec<(String, Tensor)>, TrainError> {
    if let Verdict::Broken(broken) = verify(&RealFs, folder)? {
        let (path, reason) = (folder.to_owned(), broken.to_string());
        return Err(TrainError::BadCheckpoint { path, reason });
    }
    let file = SafetensorsFile::open(&folder.join(WEIGHTS))?;
    let read = |(name, shape): (&str, &[usize])| {
        Ok((name.to_owned(), file.read(name, shape, DType::F32, &Device::Cpu)?))
    };
    file.shapes().map(read).collect()
}

/// What a resumed run is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Resumed {
    /// What the observer left in the checkpoint.
    pub extra: Value,
    /// Why the steps to come will not have the bits that the run would have had without the
    /// interruption, where that is so. They differ by rounding alone.
    pub rounds_differently: Option<String>,
}

/// What the manifest says beside the files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    #[serde(default = "first_format")]
    format: u32,
    /// What the matrix products of the run are computed with.
    #[serde(default)]
    instructions: Option<String>,
    step: u64,
    num_tokens: u64,
    /// A step that is cut otherwise rounds otherwise.
    #[serde(default)]
    fit: Fit,
    fingerprint: Value,
    extra: Value,
}

/// A checkpoint of the run's own tensors.
#[derive(Debug)]
pub(crate) struct Image {
    weights: Vec<(String, Tensor)>,
    moments: Vec<(String, Tensor)>,
    state: State,
}

impl Image {
    /// What its tensors take, in memory as on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |(_, tensor): &(String, Tensor)| {
            (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
        };
        self.weights.iter().chain(&self.moments).map(bytes).sum()
    }

    /// Its files in the machine's memory, which the steps to come do not change.
    pub(crate) fn copied(&self) -> Result<ImageCopy, TrainError> {
        let files = self.files().map(|(_, tensors)| tensors);
        let bytes = files.iter().map(|tensors| SafetensorsImage::bytes_needed(tensors)).sum();
        memory::request(bytes)?;
        let [weights, moments] = files;
        let files = [SafetensorsImage::new(&weights)?, SafetensorsImage::new(&moments)?];
        Ok(ImageCopy { files, state: self.state.clone() })
    }

    /// The same in the memory of an earlier copy of the same run.
    pub(crate) fn copied_into(&self, earlier: ImageCopy) -> Result<ImageCopy, TrainError> {
        let ImageCopy { mut files, .. } = earlier;
        for (file, (_, tensors)) in files.iter_mut().zip(self.files()) {
            file.update(&tensors)?;
        }
        Ok(ImageCopy { files, state: self.state.clone() })
    }

    fn files(&self) -> [(&'static str, Vec<(&str, &Tensor)>); 2] {
        [(WEIGHTS, &self.weights), (OPTIMIZER, &self.moments)].map(|(file, tensors)| {
            (file, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect())
        })
    }

    /// Writes it to `path`, where nothing may be yet.
    pub(crate) fn write(&self, fs: &dyn Fs, path: &Path) -> Result<(), TrainError> {
        let folder = SealedFolder::begin(fs, path)?;
        for (file, tensors) in self.files() {
            write_safetensors(folder.fs(), &folder.path().join(file), &tensors, None)?;
        }
        folder.seal(json!(self.state))?;
        Ok(())
    }
}

/// A checkpoint in memory as its files will be on the disk.
#[derive(Debug)]
pub(crate) struct ImageCopy {
    files: [SafetensorsImage; 2],
    state: State,
}

impl ImageCopy {
    /// Writes it to `path`, where nothing may be yet.
    pub(crate) fn write(&self, fs: &dyn Fs, path: &Path) -> Result<(), TrainError> {
        let folder = SealedFolder::begin(fs, path)?;
        for (name, file) in [WEIGHTS, OPTIMIZER].into_iter().zip(&self.files) {
            file.write(folder.fs(), &folder.path().join(name))?;
        }
        folder.seal(json!(self.state))?;
        Ok(())
    }
}

fn first_format() -> u32 {
    1
}

impl Trainer<'_> {
    /// Writes a checkpoint to `path`, where nothing may be yet.
    pub fn write_checkpoint(
        &self,
        fs: &dyn Fs,
        path: &Path,
        extra: Value,
    ) -> Result<(), TrainError> {
        self.image(extra).write(fs, path)
    }

    /// What a checkpoint of this step consists of.
    pub(crate) fn image(&self, extra: Value) -> Image {
        let masters = self.optimizer.masters(&self.model);
        Image {
            weights: masters.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect(),
            moments: self.optimizer.moments(&self.model),
            state: State {
                format: FORMAT,
                instructions: Some(self.instructions().to_owned()),
                step: self.step,
                num_tokens: self.num_tokens,
                fit: self.fit,
                fingerprint: self.fingerprint(),
                extra,
            },
        }
    }

    /// Takes over a checkpoint that this very run wrote.
    ///
    /// Every byte is verified before the first one is believed.
    pub fn resume(&mut self, path: &Path) -> Result<Resumed, TrainError> {
        let bad = |reason: String| TrainError::BadCheckpoint { path: path.to_owned(), reason };
        let manifest = match verify(&RealFs, path)? {
            Verdict::Whole(manifest) => manifest,
            Verdict::Broken(broken) => return Err(bad(broken.to_string())),
        };
        let state: State =
            serde_json::from_value(manifest.extra).map_err(|error| bad(error.to_string()))?;
        if state.format > FORMAT {
            return Err(bad(format!(
                "its format is {}, and this version knows those up to {FORMAT}",
                state.format
            )));
        }
        if let Some(step) = checkpoint_step(path).filter(|step| *step != state.step) {
            return Err(bad(format!(
                "it is of step {}, and its name is that of {step}",
                state.step
            )));
        }
        self.check_fingerprint(path, &state.fingerprint)?;
        let weights = SafetensorsFile::open(&path.join(WEIGHTS))?;
        let moments = SafetensorsFile::open(&path.join(OPTIMIZER))?;
        let read_into = |file: &SafetensorsFile, name: &str, tensor: &Tensor| {
            let stored = file.read(name, tensor.dims(), tensor.dtype(), tensor.device())?;
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
        let now = self.instructions();
        let rounds_differently = state.instructions.filter(|then| then != now).map(|then| {
            format!("the steps before were computed with {then}, those to come with {now}")
        });
        Ok(Resumed { extra: state.extra, rounds_differently })
    }

    fn instructions(&self) -> &'static str {
        let all = chandler_kernels::instructions();
        if self.model.dtype() == DType::BF16 { all.bf16 } else { all.f32 }
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
            "data": self.digest,
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
            "data",
            "total_steps",
            "batch",
            "order",
            "hyperparameters",
            "optimizer",
            "dtype",
            "trainable",
        ] {
            // Checkpoints of before did not know their data, and other sources of rows may not.
            let is_unknown = what == "data" && (was[what].is_null() || is[what].is_null());
            if was[what] != is[what] && !is_unknown {
                let (path, was) = (path.to_owned(), was[what].to_string());
                return Err(TrainError::OtherRun { path, what, was, is: is[what].to_string() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_in_the_memory_of_an_earlier_one_has_the_values_of_now() {
        let folder = tempfile::tempdir().unwrap();
        let weights = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let state = |step| State {
            format: FORMAT,
            instructions: None,
            step,
            num_tokens: 0,
            fit: Fit::default(),
            fingerprint: Value::Null,
            extra: Value::Null,
        };
        let image = |step, values: &[f32], codes: &[u8]| Image {
            weights: vec![("a".to_owned(), weights(values))],
            moments: vec![("a".to_owned(), Tensor::new(codes, &Device::Cpu).unwrap())],
            state: state(step),
        };
        let earlier = image(1, &[1.0, 2.0], &[3, 4]).copied().unwrap();
        let now = image(2, &[5.0, 6.0], &[7, 8]);
        let copy = now.copied_into(earlier).unwrap();
        let path = |name: &str| folder.path().join(name);
        now.write(&RealFs, &path("between")).unwrap();
        // A step goes on meanwhile.
        now.weights[0].1.slice_set(&weights(&[9.0, 9.0]), 0, 0).unwrap();
        copy.write(&RealFs, &path("beside")).unwrap();
        for file in [WEIGHTS, OPTIMIZER, "manifest.json"] {
            let [between, beside] = ["between", "beside"]
                .map(|checkpoint| std::fs::read(path(checkpoint).join(file)).unwrap());
            assert!(between == beside, "{file}");
        }
    }
}
