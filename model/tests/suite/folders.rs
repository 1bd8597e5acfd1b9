//! Model folders out and in again, and folders that are broken.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use chandler_durable::RealFs;
use chandler_model::{CausalLm, ModelConfig, ModelError, write_model, write_shards};
use serde_json::{Value, json};

use crate::support::{MODELS, flat, json as read_json, load, model_folder};

fn named(model: &CausalLm) -> Vec<(&str, &Tensor)> {
    model.params().iter().map(|(_, p)| (p.name.as_str(), &p.value)).collect()
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model_folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn put(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    edit(&mut config);
    put(&path, config.to_string().as_bytes());
}

fn load_error(folder: &Path) -> ModelError {
    let error = CausalLm::load(folder, None, &Device::Cpu).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error
}

#[test]
fn a_written_folder_is_read_again() {
    for name in MODELS {
        let model = load(name);
        let folder = tempfile::tempdir().unwrap();
        let source = model_folder(name);
        write_model(&RealFs, folder.path(), model.config(), &named(&model), DType::F32, &source)
            .unwrap();
        let again = CausalLm::load(folder.path(), None, &Device::Cpu).unwrap();
        assert_eq!(again.dtype(), DType::F32);
        for ((name, before), (_, after)) in named(&model).into_iter().zip(named(&again)) {
            assert_eq!(flat(before), flat(after), "{name}");
        }
        let before = read_json(&source.join("config.json"));
        assert_eq!(again.config().raw, before, "{name}: config.json");
        assert!(folder.path().join("tokenizer.json").exists());
        assert!(folder.path().join("generation_config.json").exists());
    }
}

#[test]
fn shards_and_half_precision() {
    let model = load("smol-llama");
    let folder = copy_of("smol-llama");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    for dtype in [DType::BF16, DType::F16] {
        write_shards(&RealFs, folder.path(), &named(&model), dtype, 200_000).unwrap();
        let index = read_json(&folder.path().join("model.safetensors.index.json"));
        let weight_map = index["weight_map"].as_object().unwrap();
        assert_eq!(weight_map.len(), model.params().len());
        let again = CausalLm::load(folder.path(), None, &Device::Cpu).unwrap();
        assert_eq!(again.dtype(), dtype);
        let shard = weight_map["model.norm.weight"].as_str().unwrap();
        assert!(shard.starts_with("model-") && shard.contains("-of-"), "{shard}");
        fs::remove_file(folder.path().join(shard)).unwrap();
        let error = load_error(folder.path());
        assert!(error.to_string().contains(shard), "{error}");
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let folder = copy_of("qwen3");
    edit_config(folder.path(), |config| config["model_type"] = json!("mamba"));
    let error = load_error(folder.path());
    assert!(error.to_string().contains("\"mamba\""), "{error}");
    assert!(error.hint().unwrap().contains("qwen3"));
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let folder = copy_of("qwen3");
    edit_config(folder.path(), |config| config["num_hidden_layers"] = json!(3));
    edit_config(folder.path(), |config| config["layer_types"] = Value::Null);
    let error = load_error(folder.path());
    assert!(error.to_string().contains("model.layers.2.input_layernorm.weight"), "{error}");
    edit_config(folder.path(), |config| config["num_hidden_layers"] = json!(2));
    edit_config(folder.path(), |config| config["intermediate_size"] = json!(100));
    let error = load_error(folder.path()).to_string();
    assert!(error.contains("mlp.gate_proj.weight") && error.contains("[144, 64]"), "{error}");
}

#[test]
fn nan_weights_are_refused() {
    let model = load("smol-llama");
    let folder = copy_of("smol-llama");
    let broken = (&model.params().iter().last().unwrap().1.value * f64::NAN).unwrap();
    let mut tensors = named(&model);
    tensors.last_mut().unwrap().1 = &broken;
    write_shards(&RealFs, folder.path(), &tensors, DType::BF16, usize::MAX).unwrap();
    let error = load_error(folder.path());
    assert!(
        matches!(&error, ModelError::NonFinite { name, count: 64, .. } if name == "model.norm.weight"),
        "{error}"
    );
}

#[test]
fn damaged_safetensors_are_refused_without_a_panic() {
    let whole = fs::read(model_folder("smol-llama").join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();
    let with_header = |text: &str| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.extend(&whole[8 + header..]);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("only a length", whole[..8].to_vec()),
        ("cut in the header", whole[..100].to_vec()),
        ("cut in the data", whole[..whole.len() - 100].to_vec()),
        ("a huge header", [&u64::MAX.to_le_bytes(), &whole[8..]].concat()),
        ("no JSON", with_header("{]")),
        (
            "offsets beyond the end",
            with_header(&text.replace("data_offsets\":[0,", "data_offsets\":[99999999999,")),
        ),
        (
            "an overflowing shape",
            with_header(
                r#"{"a":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,4]}}"#,
            ),
        ),
        (
            "the same name twice",
            with_header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            ),
        ),
    ];
    for (what, bytes) in cases {
        let folder = copy_of("smol-llama");
        put(&folder.path().join("model.safetensors"), &bytes);
        let error = load_error(folder.path());
        assert!(matches!(error, ModelError::BadSafetensors { .. }), "{what}: {error}");
    }
}

#[test]
fn an_index_cannot_reach_out_of_its_folder() {
    let folder = copy_of("qwen2");
    let path = folder.path().join("model.safetensors.index.json");
    put(&path, br#"{"weight_map": {"model.norm.weight": "../../etc/passwd"}}"#);
    let error = load_error(folder.path());
    assert!(error.to_string().contains("../../etc/passwd"), "{error}");
}

#[test]
fn a_folder_without_a_model_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = load_error(folder.path());
    assert!(error.to_string().contains("config.json"), "{error}");
    let folder = copy_of("qwen3");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(load_error(folder.path()).to_string().contains("model.safetensors"));
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let base = read_json(&model_folder("qwen3").join("config.json"));
    let cases: [(&str, Value); 7] = [
        ("hidden_size", Value::Null),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(7)),
        ("hidden_act", json!("relu6")),
        ("quantization_config", json!({ "bits": 4 })),
        ("rope_scaling", json!({ "rope_type": "longrope" })),
        ("layer_types", json!(["full_attention"])),
    ];
    for (key, value) in cases {
        let mut config = base.clone();
        config[key] = value;
        let error = ModelConfig::from_json(config, Path::new("config.json")).unwrap_err();
        assert!(error.hint().is_some(), "{key}");
        let expected = if key == "rope_scaling" { "rope_type" } else { key };
        assert!(error.to_string().contains(expected), "{key}: {error}");
    }
}

#[test]
fn fresh_weights_have_the_counted_parameters() {
    for name in MODELS {
        let config = ModelConfig::read(&model_folder(name)).unwrap();
        let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu).unwrap();
        let count: usize = model.params().iter().map(|(_, p)| p.value.elem_count()).sum();
        assert_eq!(count, model.config().num_parameters(), "{name}");
        assert_eq!(model.params().bytes(), 4 * count);
    }
}
