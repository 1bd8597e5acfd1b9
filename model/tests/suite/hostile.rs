//! Weights and indices that were made to do harm.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use chandler_durable::RealFs;
use chandler_model::{CausalLm, ModelConfig, ModelError, SafetensorsFile, write_shards};
use serde_json::{Value, json};

use crate::support::{json as read_json, load, model_folder};

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    File::create(path).unwrap().write_all(bytes.as_ref()).unwrap();
}

/// A file with this header and so many bytes of data.
fn file(folder: &Path, header: &str, data: usize) -> PathBuf {
    let path = folder.join("x.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    put(&path, bytes);
    path
}

fn tensor(shape: &[u64], begin: u64, end: u64) -> Value {
    json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] })
}

/// What is said about a header, in no time.
fn said(header: &str, data: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), header, data);
    let begun = Instant::now();
    let error = SafetensorsFile::open(&path).unwrap_err();
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    assert!(matches!(error, ModelError::BadSafetensors { .. }), "{error}");
    assert!(error.to_string().len() < 3000);
    error.to_string()
}

#[test]
fn headers_that_lie_about_the_data() {
    let half = 1_u64 << 63;
    let two = |a: Value, b: Value| json!({ "a": a, "b": b }).to_string();
    for (header, says) in [
        (two(tensor(&[2], 0, 8), tensor(&[2], 4, 12)), "share the bytes from 4 to 8"),
        (two(tensor(&[1], 0, 4), tensor(&[1], 0, 4)), "share the bytes"),
        (two(tensor(&[1], 0, 4), tensor(&[1], 8, 12)), "no tensor has the bytes from 4 to 8"),
        (json!({ "a": tensor(&[1], 4, 8) }).to_string(), "no tensor has the bytes from 0 to 4"),
        (json!({ "a": tensor(&[2], 0, 8) }).to_string(), "no tensor has the bytes from 8 to 12"),
        (json!({ "a": tensor(&[3], 12, 0) }).to_string(), "claims bytes 12 to 0"),
        (json!({ "a": tensor(&[half, 2], 0, 0) }).to_string(), "claims bytes"),
        (json!({ "a": tensor(&[half, half], 0, 12) }).to_string(), "claims bytes"),
        (json!({ "a": tensor(&[3], u64::MAX - 11, u64::MAX) }).to_string(), "claims bytes"),
        (json!({ "a": tensor(&[1; 17], 0, 4) }).to_string(), "more than 16 dimensions"),
        (json!({ "n".repeat(2000): tensor(&[3], 0, 12) }).to_string(), "a name has 2000 bytes"),
        (
            json!({ "a": { "dtype": "F33", "shape": [3], "data_offsets": [0, 12] } }).to_string(),
            "F33",
        ),
        (
            json!({ "a": { "dtype": "F32", "shape": [-3], "data_offsets": [0, 12] } }).to_string(),
            "-3",
        ),
        ("{}".to_owned(), "no tensor has the bytes from 0 to 12"),
    ] {
        let said = said(&header, 12);
        assert!(said.contains(says), "{header}: {said}");
    }
    let folder = tempfile::tempdir().unwrap();
    let sound = two(tensor(&[1], 0, 4), tensor(&[2, 1], 4, 12));
    SafetensorsFile::open(&file(folder.path(), &sound, 12)).unwrap();
}

#[test]
fn headers_that_are_bombs() {
    let deep = format!("{{\"a\": {}", "[".repeat(10_000_000));
    assert!(said(&deep, 0).contains("not understood"));
    let objects = format!("{{\"a\": {}", "{\"a\":".repeat(1_000_000));
    assert!(said(&objects, 0).contains("not understood"));
    let metadata = format!("{{\"__metadata__\": {}", "[".repeat(10_000_000));
    assert!(said(&metadata, 0).contains("not understood"));
    let many: Vec<String> =
        (0..250_001).map(|name| format!("\"{name}\": {}", tensor(&[0], 0, 0))).collect();
    assert!(said(&format!("{{{}}}", many.join(",")), 0).contains("more than 250000 tensors"));
    let long = format!("{{\"a\": {{\"dtype\": \"F32\", \"shape\": [{}1]", "1,".repeat(20_000_000));
    assert!(said(&long, 0).contains("more than 16 dimensions"));
    // As large as a header may say it is, and nothing behind it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for length in [100_000_000_u64, 100_000_001, u64::MAX] {
        put(&path, length.to_le_bytes());
        let error = SafetensorsFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("its header would be"), "{error}");
    }
    let error = SafetensorsFile::open(Path::new("/dev/zero")).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

/// A model in shards, in a folder of its own within `home`.
fn sharded(home: &Path) -> (PathBuf, PathBuf) {
    let folder = home.join("model");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(model_folder("smol-llama")).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let model = load("smol-llama");
    let tensors: Vec<_> = model.params().iter().map(|(_, p)| (p.name.as_str(), &p.value)).collect();
    write_shards(&RealFs, &folder, &tensors, DType::BF16, 200_000).unwrap();
    let index = folder.join("model.safetensors.index.json");
    (folder, index)
}

fn load_error(folder: &Path) -> String {
    let error = CausalLm::load(folder, None, &Device::Cpu).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

#[test]
fn an_index_names_its_own_folder_and_the_right_shards() {
    let home = tempfile::tempdir().unwrap();
    let (folder, index) = sharded(home.path());
    CausalLm::load(&folder, None, &Device::Cpu).unwrap();
    let sound = read_json(&index);
    let with = |name: &str, shard: &str| {
        let mut changed = sound.clone();
        changed["weight_map"][name] = json!(shard);
        put(&index, changed.to_string());
        load_error(&folder)
    };
    for shard in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", ".", "..", ""] {
        assert!(with("model.norm.weight", shard).contains("not a file of this folder"), "{shard}");
    }
    assert!(with("model.norm.weight", "a\n\u{1b}[2J/..").contains("\\n\\u{1b}[2J"));
    assert!(with("model.norm.weight", "shard.bin").contains("is a pickle"));
    let first = sound["weight_map"]["model.embed_tokens.weight"].as_str().unwrap();
    assert_ne!(sound["weight_map"]["model.norm.weight"], first);
    assert!(with("model.norm.weight", first).contains("which is not so"));
    assert!(with("not.there", first).contains("\"not.there\" is in"));
}

#[test]
fn links_may_lead_into_the_hubs_blobs_and_nowhere_else() {
    let home = tempfile::tempdir().unwrap();
    let (folder, _) = sharded(home.path());
    // As the hub's cache lies on the disk.
    let repository = home.path().join("models--owner--name");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for (number, entry) in fs::read_dir(&folder).unwrap().flatten().enumerate() {
        fs::copy(entry.path(), blobs.join(number.to_string())).unwrap();
        let target = format!("../../blobs/{number}");
        symlink(target, snapshot.join(entry.file_name())).unwrap();
    }
    CausalLm::load(&snapshot, None, &Device::Cpu).unwrap();
    let elsewhere = home.path().join("link-to-the-snapshot");
    symlink(&snapshot, &elsewhere).unwrap();
    CausalLm::load(&elsewhere, None, &Device::Cpu).unwrap();
    // The same links in a folder that is no snapshot, and links to elsewhere.
    let shard =
        read_json(&folder.join("model.safetensors.index.json"))["weight_map"]["model.norm.weight"]
            .as_str()
            .unwrap()
            .to_owned();
    let outside = home.path().join("outside.safetensors");
    fs::copy(folder.join(&shard), &outside).unwrap();
    for place in [folder.join(&shard), snapshot.join(&shard)] {
        fs::remove_file(&place).unwrap();
        symlink(&outside, &place).unwrap();
        let error = load_error(place.parent().unwrap());
        assert!(error.contains("outside of the model folder"), "{error}");
    }
    fs::remove_file(folder.join(&shard)).unwrap();
    fs::hard_link(&outside, folder.join(&shard)).unwrap();
    CausalLm::load(&folder, None, &Device::Cpu).unwrap();
}

#[test]
fn an_adapter_that_is_a_pickle() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join("adapter_config.json"), "{\"r\": 4}");
    put(&folder.path().join("adapter_model.bin"), b"\x80\x02}");
    let error = load("qwen3").load_adapter(folder.path()).unwrap_err();
    assert!(matches!(error, ModelError::Pickle { .. }), "{error}");
}

#[test]
fn sizes_that_overflow_are_refused() {
    let base = read_json(&model_folder("qwen3").join("config.json"));
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    ] {
        for size in [1_u64 << 40, u64::MAX] {
            let mut config = base.clone();
            config[key] = json!(size);
            config["layer_types"] = Value::Null;
            let error = ModelConfig::from_json(config, Path::new("config.json")).unwrap_err();
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }
}
