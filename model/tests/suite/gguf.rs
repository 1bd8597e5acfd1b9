//! GGUF files, read back by candle: values, and the logits of candle-transformers' own models.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Entry};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{
    quantized_gemma3, quantized_llama, quantized_qwen2, quantized_qwen3,
};
use chandler_durable::RealFs;
use chandler_model::gguf::{GgufError, GgufType, write_gguf};
use chandler_model::{CausalLm, SequenceLayout};
use serde_json::{Value, json};

use crate::support::{flat, json, largest_difference, load, model_folder};

const TOKENS: [u32; 9] = [5, 90, 3, 1700, 44, 8, 1023, 7, 400];

struct Written {
    _place: tempfile::TempDir,
    path: PathBuf,
    content: Content,
}

impl Written {
    fn tensor(&self, name: &str) -> Tensor {
        let mut file = File::open(&self.path).unwrap();
        let tensor = self.content.tensor(&mut file, name, &Device::Cpu).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap()
    }

    fn texts(&self, key: &str) -> Vec<&String> {
        let entries = self.content.metadata[key].to_vec().unwrap().iter();
        entries.map(|entry| entry.to_string().unwrap()).collect()
    }
}

fn try_write(model: &CausalLm, folder: &Path, weights: GgufType) -> Result<Written, GgufError> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.gguf");
    let summary = write_gguf(&RealFs, &path, model, folder, weights)?;
    assert_eq!(summary.bytes, path.metadata().unwrap().len());
    let content = Content::read(&mut File::open(&path).unwrap()).unwrap();
    assert_eq!(summary.tensors, content.tensor_infos.len());
    Ok(Written { _place: place, path, content })
}

fn write(name: &str, weights: GgufType) -> Written {
    try_write(&load(name), &model_folder(name), weights).unwrap()
}

/// A model folder whose JSON files were changed, and the model in it.
fn changed(
    name: &str,
    change: impl Fn(&str, &mut Value),
) -> (tempfile::TempDir, Result<CausalLm, chandler_model::ModelError>) {
    let place = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model_folder(name)).unwrap() {
        let entry = entry.unwrap();
        let file = entry.file_name().into_string().unwrap();
        let to = place.path().join(&file);
        if file.ends_with(".json") {
            let mut value = json(&entry.path());
            change(&file, &mut value);
            chandler_durable::write(&to, value.to_string().as_bytes()).unwrap();
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
    let model = CausalLm::load(place.path(), Some(DType::F32), &Device::Cpu);
    (place, model)
}

/// Every pair of tokens that makes one, those of a token side by side: SentencePiece's own order.
fn as_sentencepiece(file: &str, value: &mut Value) {
    if file != "tokenizer.json" {
        return;
    }
    let vocab: BTreeMap<String, u64> = value["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (token.clone(), id.as_u64().unwrap()))
        .collect();
    let mut merges = vec![];
    for (token, id) in &vocab {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                merges.push((*id, json!([left, right])));
            }
        }
    }
    merges.sort_by_key(|(id, _)| *id);
    value["model"]["merges"] = merges.into_iter().map(|(_, merge)| merge).collect();
}

/// The largest difference to logits of another implementation, relative to the largest of them.
fn difference_to(model: &CausalLm, theirs: &Tensor) -> f64 {
    let input = model.input(&TOKENS, SequenceLayout::new([TOKENS.len() as u32])).unwrap();
    let ours = model.logits(&model.forward(&input).unwrap()).unwrap();
    let (ours, theirs) = (flat(&ours.get(TOKENS.len() - 1).unwrap()), flat(theirs));
    let largest = ours.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
    largest_difference(&ours, &theirs) / largest
}

fn batch() -> Tensor {
    Tensor::new(&[TOKENS], &Device::Cpu).unwrap()
}

fn reopened(written: &Written) -> (Content, File) {
    let mut file = File::open(&written.path).unwrap();
    (Content::read(&mut file).unwrap(), file)
}

#[test]
fn candle_transformers_computes_the_same_from_the_file() {
    let device = Device::Cpu;
    let written = write("smol-llama", GgufType::F32);
    let (content, mut file) = reopened(&written);
    let mut llama = quantized_llama::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
    let theirs = llama.forward(&batch(), 0).unwrap();
    let difference = difference_to(&load("smol-llama"), &theirs);
    assert!(difference < 1e-4, "llama: {difference}");

    let written = write("qwen2", GgufType::F32);
    let (content, mut file) = reopened(&written);
    let mut qwen2 = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
    let difference = difference_to(&load("qwen2"), &qwen2.forward(&batch(), 0).unwrap());
    assert!(difference < 1e-4, "qwen2: {difference}");

    let written = write("qwen3", GgufType::F32);
    let (mut content, mut file) = reopened(&written);
    // Unless told so, candle rounds this model's rotation to f16.
    content.metadata.insert("general.dtype".to_owned(), Entry::U32(0));
    let mut qwen3 = quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
    let difference = difference_to(&load("qwen3"), &qwen3.forward(&batch(), 0).unwrap());
    assert!(difference < 1e-4, "qwen3: {difference}");
}

#[test]
fn mistral_and_gemma_as_llama_cpp_knows_them_compute_the_same_too() {
    let device = Device::Cpu;
    let (folder, model) = changed("mistral", |file, value| {
        if file == "config.json" {
            value["sliding_window"] = Value::Null;
        }
    });
    let model = model.unwrap();
    let written = try_write(&model, folder.path(), GgufType::F32).unwrap();
    assert_eq!(written.content.metadata["tokenizer.ggml.pre"].to_string().unwrap(), "tekken");
    let (content, mut file) = reopened(&written);
    let mut theirs = quantized_llama::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
    let difference = difference_to(&model, &theirs.forward(&batch(), 0).unwrap());
    assert!(difference < 1e-4, "mistral: {difference}");

    let gemma3 = |activation: &'static str| {
        let (folder, model) = changed("gemma3", move |file, value| {
            as_sentencepiece(file, value);
            if file == "config.json" {
                value["sliding_window_pattern"] = json!(6);
                value["hidden_activation"] = json!(activation);
            }
        });
        (folder, model.unwrap())
    };
    let (folder, model) = gemma3("gelu_pytorch_tanh");
    let written = try_write(&model, folder.path(), GgufType::F32).unwrap();
    // candle-transformers has SiLU where Gemma 3 has GELU; all else is held against it.
    let (_folder, model) = gemma3("silu");
    let (content, mut file) = reopened(&written);
    let mut theirs =
        quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &device).unwrap();
    let difference = difference_to(&model, &theirs.forward(&batch(), 0).unwrap());
    assert!(difference < 1e-4, "gemma3: {difference}");
}

#[test]
fn weights_come_back_within_what_their_type_rounds() {
    // Relative to the largest value of a block: half a step of the type's grid.
    let types = [
        (GgufType::F32, 0.0),
        (GgufType::F16, 1.0 / 2048.0),
        (GgufType::Bf16, 1.0 / 256.0),
        (GgufType::Q8_0, 0.51 / 127.0),
    ];
    for (weights, bound) in types {
        let model = load("qwen3");
        let written = write("qwen3", weights);
        let named = |name: &str| {
            let (_, param) = model.params().iter().find(|(_, param)| param.name == name).unwrap();
            param.value.clone()
        };
        for (ours, theirs) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight"),
            ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight"),
        ] {
            let (ours, theirs) = (named(ours), written.tensor(theirs));
            assert_eq!(ours.dims(), theirs.dims());
            let largest = flat(&ours).iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            let difference = largest_difference(&flat(&ours), &flat(&theirs));
            assert!(difference <= bound * largest, "{}: {difference}", weights.name());
        }
        let norm = named("model.layers.0.post_attention_layernorm.weight");
        let stored = written.tensor("blk.0.ffn_norm.weight");
        assert_eq!(flat(&stored), flat(&norm), "vectors are f32 in every file");
    }
}

#[test]
fn blocks_of_256_are_used_where_rows_divide_into_them() {
    let config = json!({
        "model_type": "qwen3", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 160,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    });
    let config = chandler_model::ModelConfig::from_json(config, "config.json".as_ref()).unwrap();
    let model = CausalLm::fresh(config, 1, DType::F32, &Device::Cpu).unwrap();
    for (weights, bound) in [(GgufType::Q6K, 0.03), (GgufType::Q5K, 0.05), (GgufType::Q4K, 0.1)] {
        let written = try_write(&model, &model_folder("qwen3"), weights).unwrap();
        let (_, up) = model.params().iter().find(|(_, p)| p.name.contains("up_proj")).unwrap();
        let (ours, theirs) = (flat(&up.value), flat(&written.tensor("blk.0.ffn_up.weight")));
        let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let off: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
        let part = norm(&off) / norm(&ours);
        assert!(part > 0.0 && part < bound, "{}: {part}", weights.name());
        // 160 inputs: no multiple of 256, but of 32.
        let down = &written.content.tensor_infos["blk.0.ffn_down.weight"];
        assert_eq!(down.ggml_dtype, candle_core::quantized::GgmlDType::Q8_0);
    }
}

#[test]
fn llama_3_has_its_divisors_and_its_tokenizer() {
    let written = write("llama-gqa", GgufType::F16);
    // By transformers' formula for theta 500000, 12 dimensions, factor 8, 1, 4 and 64 tokens.
    let factors = flat(&written.tensor("rope_freqs.weight"));
    assert_eq!(factors.len(), 6);
    assert_eq!((factors[0], factors[5]), (1.0, 8.0));
    let wavelength = std::f64::consts::TAU * 500_000f64.powf(2.0 / 12.0);
    let smooth = (64.0 / wavelength - 1.0) / 3.0;
    assert!((factors[1] - 1.0 / ((1.0 - smooth) / 8.0 + smooth)).abs() < 1e-6, "{factors:?}");
    let metadata = &written.content.metadata;
    let text = |key: &str| metadata[key].to_string().unwrap().clone();
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(text("tokenizer.ggml.model"), "gpt2");
    assert_eq!(text("tokenizer.ggml.pre"), "llama-bpe");
    assert!(text("tokenizer.chat_template").contains("start_header_id"));
    let tokens = written.texts("tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[2046].as_str()), (2048, "<|eot_id|>"));
    assert_eq!(written.texts("tokenizer.ggml.merges")[0], "Ġ Ġ");
    let kinds = metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    assert!(matches!((&kinds[0], &kinds[2046]), (Entry::I32(1), Entry::I32(3))));
    let id = |key: &str| metadata[&format!("tokenizer.ggml.{key}_token_id")].to_u32().unwrap();
    assert_eq!((id("bos"), id("eos"), id("padding")), (2040, 2046, 2042));
    assert!(metadata["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
    assert_eq!(metadata["llama.attention.key_length"].to_u32().unwrap(), 12);
}

#[test]
fn gemmas_tokenizer_has_scores_in_the_order_of_its_merges() {
    let (folder, model) = changed("gemma2", |file, value| {
        as_sentencepiece(file, value);
        if file == "config.json" {
            value["query_pre_attn_scalar"] = json!(16);
        }
    });
    let model = model.unwrap();
    let written = try_write(&model, folder.path(), GgufType::F32).unwrap();
    let metadata = &written.content.metadata;
    assert_eq!(metadata["tokenizer.ggml.model"].to_string().unwrap(), "llama");
    assert!(!metadata["tokenizer.ggml.add_space_prefix"].to_bool().unwrap());
    assert_eq!(metadata["gemma2.attn_logit_softcapping"].to_f32().unwrap(), 50.0);
    assert_eq!(metadata["gemma2.attention.sliding_window"].to_u32().unwrap(), 16);
    let tokens = written.texts("tokenizer.ggml.tokens");
    let scores = metadata["tokenizer.ggml.scores"].to_vec().unwrap();
    let kinds = metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
    let at = |token: &str| tokens.iter().position(|found| *found == token).unwrap();
    let score = |token: &str| scores[at(token)].to_f32().unwrap();
    assert!(score("▁▁") < 0.0 && score("▁▁") > -2048.0);
    let all = scores.iter().map(|score| score.to_f32().unwrap());
    let merged: Vec<f32> = all.filter(|score| *score > -2048.0).collect();
    assert!(merged.len() > 1000 && merged.is_sorted_by(|a, b| a > b));
    assert!(score("<0x41>") < -2048.0);
    let kind = |token: &str| kinds[at(token)].to_i32().unwrap();
    assert_eq!((kind("<0x41>"), kind("<unk>"), kind("<bos>"), kind("▁▁")), (6, 2, 3, 1));
    // A norm that scales by 1 + w stands there with the 1.
    let name = "model.layers.0.post_attention_layernorm.weight";
    let (_, norm) = model.params().iter().find(|(_, param)| param.name == name).unwrap();
    let expected: Vec<f64> = flat(&norm.value).iter().map(|w| f64::from(*w as f32 + 1.0)).collect();
    assert_eq!(flat(&written.tensor("blk.0.post_attention_norm.weight")), expected);
    assert!(!written.content.tensor_infos.contains_key("output.weight"));
}

#[test]
fn what_llama_cpp_computes_otherwise_is_refused() {
    let config = |key: &'static str, to: Value| {
        move |file: &str, value: &mut Value| {
            if file == "config.json" {
                value[key] = to.clone();
            }
        }
    };
    let refusal = |name: &str, change: &dyn Fn(&str, &mut Value)| {
        let (folder, model) = changed(name, change);
        let error = try_write(&model.unwrap(), folder.path(), GgufType::F32).err().unwrap();
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    };
    let nothing = |_: &str, _: &mut Value| {};
    assert!(refusal("mistral", &nothing).contains("a window of 24 tokens in layer 0"));
    assert!(refusal("gemma2", &nothing).contains("query_pre_attn_scalar = 24"));
    assert!(refusal("gemma3", &nothing).contains("no window in layer 2"));
    let activation = config("hidden_act", json!("gelu"));
    assert!(refusal("smol-llama", &activation).contains("activation"));
    let yarn = json!({ "rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0 });
    assert!(refusal("qwen3", &config("rope_scaling", yarn)).contains("yarn"));
    let dynamic = json!({ "rope_type": "dynamic", "factor": 2.0 });
    assert!(refusal("qwen3", &config("rope_scaling", dynamic)).contains("dynamic"));
}

#[test]
fn tokenizers_that_llama_cpp_would_cut_otherwise_are_refused() {
    let refusal = |name: &str, pointer: &'static str, to: Value| {
        let (folder, model) = changed(name, |file, value| {
            if file == "tokenizer.json" {
                *value.pointer_mut(pointer).unwrap() = to.clone();
            }
        });
        let error = try_write(&model.unwrap(), folder.path(), GgufType::F32).err().unwrap();
        assert!(matches!(error, GgufError::Tokenizer { .. }), "{error}");
        error.to_string()
    };
    let regex = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
    assert!(refusal("qwen3", regex, json!(r"\w+")).contains("pattern"));
    assert!(refusal("smol-llama", "/normalizer", json!({ "type": "NFKC" })).contains("changes"));
    assert!(refusal("qwen3", "/model/type", json!("Unigram")).contains("Unigram"));
    assert!(refusal("qwen3", "/added_tokens/0/id", json!(9999)).contains("no row"));
    // SentencePiece would merge what this one's list leaves out.
    let (folder, model) = changed("gemma2", |file, value| {
        if file == "config.json" {
            value["query_pre_attn_scalar"] = json!(16);
        }
    });
    let error = try_write(&model.unwrap(), folder.path(), GgufType::F32).err().unwrap();
    assert!(error.to_string().contains("SentencePiece"), "{error}");
}
