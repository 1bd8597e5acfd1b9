//! Low-rank adapters (Hu et al. 2021), in the folder format of peft.

use std::path::Path;

use candle_core::{DType, Tensor};
use chandler_durable::{Fs, write_file};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::linear::LowRank;
use crate::params::Param;
use crate::weights::{WeightFiles, write_safetensors};
use crate::{CausalLm, ModelError, foreign, init};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What peft puts before the base model's own names.
const PREFIX: &str = "base_model.model.";

/// Which layers are adapted, and how strongly.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter's output is multiplied by `lora_alpha / r`, or by `lora_alpha / √r` with
    /// `use_rslora`.
    pub lora_alpha: f64,
    /// Rank-stabilized scaling (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Names of the linear layers, such as `q_proj`; empty for all of them.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Factor on the adapter's output, for a layer of rank `r`.
    pub fn scale(&self, r: usize) -> f64 {
        let divisor = if self.use_rslora { (r as f64).sqrt() } else { r as f64 };
        self.lora_alpha / divisor
    }
}

impl CausalLm {
    /// Freezes the model and adds a fresh adapter: `A` uniform as in peft, `B` zero, so that the
    /// model computes what it did before.
    pub fn add_lora(&mut self, config: LoraConfig, seed: u64) -> Result<(), ModelError> {
        self.check_targets(&config)?;
        if config.r == 0 {
            return Err(ModelError::BadConfig { key: "lora.r", reason: "is 0".to_owned() });
        }
        self.freeze_base();
        let r = config.r;
        for (module, outputs, inputs) in self.linear_modules() {
            let last = module.rsplit('.').next().unwrap_or(&module);
            if !config.target_modules.is_empty()
                && !config.target_modules.iter().any(|target| target == last)
            {
                continue;
            }
            let bound = 1.0 / (inputs as f64).sqrt();
            let values = init::uniform_within(seed, self.params.len() as u64, r * inputs, bound);
            let a = Tensor::from_vec(values, (r, inputs), self.device())?;
            let b = Tensor::zeros((outputs, r), self.dtype(), self.device())?;
            let a = a.to_dtype(self.dtype())?;
            self.attach(&module, a, b, config.scale(r));
        }
        self.lora = Some(config);
        Ok(())
    }

    /// Freezes the model and adds the adapter in `folder`, in peft's format; its matrices train.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<(), ModelError> {
        let config = read_config(folder)?;
        let weights = folder.join(WEIGHTS_FILE);
        if let (false, Some(path)) = (weights.exists(), foreign::pickle_in(folder)) {
            return Err(ModelError::Pickle { path });
        }
        let files = WeightFiles::of_files(folder, [weights])?;
        self.freeze_base();
        let mut used = 0;
        for (module, outputs, inputs) in self.linear_modules() {
            let name = |side: &str| format!("{PREFIX}{module}.lora_{side}.weight");
            let Some(&[r, _]) = files.shape(&name("A")) else { continue };
            let (dtype, device) = (self.dtype(), self.device().clone());
            let a = files.read(&name("A"), &[r, inputs], dtype, &device)?;
            let b = files.read(&name("B"), &[outputs, r], dtype, &device)?;
            self.attach(&module, a, b, config.scale(r));
            used += 2;
        }
        let stray = files.names().find(|name| {
            !self.params.iter().any(|(_, param)| format!("{PREFIX}{}", param.name) == **name)
        });
        if let Some(stray) = stray {
            let reason = format!("its tensor {stray:?} has no place in this model");
            return Err(ModelError::BadAdapter { path: folder.to_path_buf(), reason });
        }
        if used == 0 {
            let reason = "it holds no matrices".to_owned();
            return Err(ModelError::BadAdapter { path: folder.to_path_buf(), reason });
        }
        self.lora = Some(config);
        Ok(())
    }

    /// Adds the adapter's product to the weights and removes the adapter.
    pub fn merge_adapter(&mut self) -> Result<(), ModelError> {
        let Self { blocks, params, .. } = self;
        for (_, linear) in blocks.iter_mut().flat_map(crate::block::Block::linears_mut) {
            let merged = linear.merged(params)?;
            params.get_mut(linear.weight).value = merged;
            linear.adapter = None;
        }
        self.params.truncate(self.num_base_params);
        for param in self.params.iter_mut() {
            param.trainable = true;
        }
        self.lora = None;
        Ok(())
    }

    fn freeze_base(&mut self) {
        for param in self.params.iter_mut() {
            param.trainable = false;
        }
    }

    fn attach(&mut self, module: &str, a: Tensor, b: Tensor, scale: f64) {
        let mut push = |side: &str, value: Tensor| {
            let name = format!("{module}.lora_{side}.weight");
            self.params.push(Param { name, value, trainable: true, decays: true })
        };
        let adapter = LowRank { a: push("A", a), b: push("B", b), scale };
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            for (part, linear) in block.linears_mut() {
                if format!("model.layers.{layer}.{part}") == module {
                    linear.adapter = Some(adapter);
                }
            }
        }
    }

    /// Every linear layer that can be adapted: name, outputs, inputs.
    fn linear_modules(&self) -> Vec<(String, usize, usize)> {
        let mut all = vec![];
        for (layer, block) in self.blocks.iter().enumerate() {
            for (part, linear) in block.linears() {
                let shape = self.params.value(linear.weight).dims();
                all.push((format!("model.layers.{layer}.{part}"), shape[0], shape[1]));
            }
        }
        all
    }

    fn check_targets(&self, config: &LoraConfig) -> Result<(), ModelError> {
        let Some(block) = self.blocks.first() else { return Ok(()) };
        let known: Vec<&str> =
            block.linears().map(|(part, _)| part.rsplit('.').next().unwrap_or(part)).into();
        match config.target_modules.iter().find(|target| !known.contains(&target.as_str())) {
            None => Ok(()),
            Some(name) => {
                let known = known.join(", ");
                Err(ModelError::UnknownModule { name: name.clone(), known })
            }
        }
    }
}

/// The model that an adapter belongs to, as its configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterBase {
    /// A folder, or an id on the hub.
    pub name: String,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
}

/// Writes an adapter folder that peft loads. `tensors` are the adapter's parameters by our names,
/// `base` is what `base_model_name_or_path` and `revision` say.
pub fn write_adapter(
    fs: &dyn Fs,
    folder: &Path,
    config: &LoraConfig,
    base: &AdapterBase,
    tensors: &[(&str, &Tensor)],
    dtype: DType,
) -> Result<(), ModelError> {
    let named: Vec<(String, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), *tensor)).collect();
    let named: Vec<(&str, &Tensor)> = named.iter().map(|(name, t)| (name.as_str(), *t)).collect();
    write_safetensors(fs, &folder.join(WEIGHTS_FILE), &named, Some(dtype))?;
    let mut targets: Vec<&str> = tensors.iter().filter_map(|(name, _)| module_name(name)).collect();
    targets.sort_unstable();
    targets.dedup();
    let json = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": config.r,
        "lora_alpha": plain_number(config.lora_alpha),
        "use_rslora": config.use_rslora,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
    });
    write_file(fs, &folder.join(CONFIG_FILE), format!("{json:#}\n").as_bytes())?;
    Ok(())
}

/// `q_proj` of `model.layers.0.self_attn.q_proj.lora_A.weight`.
fn module_name(tensor: &str) -> Option<&str> {
    tensor.split(".lora_").next()?.rsplit('.').next()
}

/// 16 rather than 16.0, as peft writes it.
fn plain_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    target_modules: Option<Value>,
    modules_to_save: Option<Vec<String>>,
    alpha_pattern: Option<Map<String, Value>>,
}

fn read_config(folder: &Path) -> Result<LoraConfig, ModelError> {
    let path = folder.join(CONFIG_FILE);
    let raw: AdapterConfig = serde_json::from_str(&foreign::read_json(&path)?)
        .map_err(|source| ModelError::Json { path: path.clone(), source })?;
    let refused = if raw.peft_type.as_deref().is_some_and(|kind| kind != "LORA") {
        Some("its peft_type is not LORA")
    } else if raw.use_dora {
        Some("use_dora is not supported")
    } else if raw.fan_in_fan_out {
        Some("fan_in_fan_out is not supported")
    } else if raw.bias.as_deref().is_some_and(|bias| bias != "none") {
        Some("a bias other than \"none\" is not supported")
    } else if raw.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()) {
        Some("modules_to_save is not supported")
    } else if raw.alpha_pattern.as_ref().is_some_and(|pattern| !pattern.is_empty()) {
        Some("alpha_pattern is not supported")
    } else {
        None
    };
    if let Some(reason) = refused {
        return Err(ModelError::BadAdapter { path, reason: reason.to_owned() });
    }
    let target_modules = match &raw.target_modules {
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => vec![],
    };
    Ok(LoraConfig {
        r: raw.r.unwrap_or(8),
        lora_alpha: raw.lora_alpha.unwrap_or(8.0),
        use_rslora: raw.use_rslora,
        target_modules,
    })
}
