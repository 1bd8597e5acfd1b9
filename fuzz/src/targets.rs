//! The readers, each as a function of bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::{DType, Device};
use chandler_cli::config::{Config, ConfigSources, EvalSetConfig, ResolvedConfig};
use chandler_cli::fuzzing;
use chandler_data::{
    ChatTemplate, DataOptions, RenderOptions, SourceLines, TextPipeline, Tokenizer,
};
use chandler_durable::{MANIFEST_NAME, RealFs, verify};
use chandler_model::{CausalLm, ModelConfig, SafetensorsFile};
use serde_json::{Value, json};

/// One reader.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its corpus.
    pub name: &'static str,
    read: fn(&[u8]),
}

impl Target {
    /// Hands it an input.
    pub fn run(&self, input: &[u8]) {
        (self.read)(input);
    }
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target { name: "jsonl_file", read: jsonl_file },
    Target { name: "jsonl_row", read: jsonl_row },
    Target { name: "chat_template", read: chat_template },
    Target { name: "tokenizer_json", read: tokenizer_json },
    Target { name: "config_toml", read: config_toml },
    Target { name: "config_json", read: config_json },
    Target { name: "safetensors", read: safetensors },
    Target { name: "manifest", read: manifest },
    Target { name: "control_request", read: control_request },
    Target { name: "openai_request", read: openai_request },
];

/// The target of a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// A folder of this process alone, in memory where the system has such a place.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let made = tempfile::Builder::new().prefix("chandler-fuzz-").tempdir_in(place);
    made.expect("a folder can be made").keep()
});

/// Removes what this process has left in memory.
pub fn clean_up() {
    // Whoever cannot remove it leaves some kilobytes.
    let _ = fs::remove_dir_all(&*FOLDER);
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/goldens/models/qwen3")
}

static PIPELINE: LazyLock<TextPipeline> =
    LazyLock::new(|| TextPipeline::open(&goldens()).expect("the fixture can be read"));

/// A file in a folder of its target's own; targets may run beside one another.
#[expect(clippy::disallowed_methods, reason = "nothing of it is to last")]
fn put(target: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = FOLDER.join(target);
    let path = folder.join(name);
    if fs::write(&path, bytes).is_err() {
        fs::create_dir_all(&folder).expect("a folder can be made");
        fs::write(&path, bytes).expect("a file can be written");
    }
    path
}

/// A value, or an error that has words.
fn told<T, E: std::fmt::Display>(result: Result<T, E>) {
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
}

/// The lines of a training file, in batches and with a bound on each.
fn jsonl_file(input: &[u8]) {
    let path = put("jsonl_file", "rows.jsonl", input);
    let Ok(lines) = SourceLines::open(&path, 4096) else { return };
    let mut last = 0;
    for (number, text) in lines.flatten() {
        assert!(number > last && text.len() <= 4096, "line {number} after {last}");
        last = number;
    }
}

/// A line, as training and as an evaluation read it.
fn jsonl_row(input: &[u8]) {
    let Ok(line) = std::str::from_utf8(input) else { return };
    let options = DataOptions::default();
    if let Ok(example) = PIPELINE.example(line, &options) {
        let size = PIPELINE.tokenizer().vocab_size();
        assert!(example.trained_ids().all(|id| (id as usize) < size));
    }
    told(PIPELINE.question(line, Some(320), Some("Be brief.")));
}

/// A template, a line with a NUL, and the messages as JSON.
fn chat_template(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (template, messages) = text.split_once('\0').unwrap_or((text, "[]"));
    let Ok(template) = ChatTemplate::new(template.to_owned(), PIPELINE.tokenizer()) else { return };
    let fallback = json!([{ "role": "user", "content": "Hello" }]);
    let messages = serde_json::from_str(messages).unwrap_or(fallback);
    let Value::Array(messages) = messages else { return };
    for add_generation_prompt in [false, true] {
        let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
        if let Ok(rendered) = template.render(&messages, &options) {
            let text = &rendered.text;
            assert!(rendered.generated.iter().all(|range| text.get(range.clone()).is_some()));
        }
    }
}

/// A tokenizer, tried on texts and on all its ids.
fn tokenizer_json(input: &[u8]) {
    let path = put("tokenizer_json", "tokenizer.json", input);
    let Some(folder) = path.parent() else { return };
    let Ok(tokenizer) = Tokenizer::open(folder) else { return };
    for text in ["Hello, world! 2 + 2 = 4.", "", " \n\t", "naïve 🙂 你好", "aaaaaaaaaaaaaaaa"]
    {
        if let Ok(ids) = tokenizer.encode(text, true) {
            told(tokenizer.decode(&ids, true));
        }
    }
    let ids: Vec<u32> = (0..64).collect();
    told(tokenizer.decode(&ids, false));
}

/// `chandler.toml`, and the same as an eval set's settings.
fn config_toml(input: &[u8]) {
    let path = put("config_toml", "chandler.toml", input);
    let sources = ConfigSources { file: Some(path.clone()), ..ConfigSources::default() };
    told(ResolvedConfig::load(&sources));
    told(EvalSetConfig::read(&path, &Config::default().eval));
}

/// A model's configuration, and the sizes that follow from it.
fn config_json(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    let Ok(config) = ModelConfig::from_json(value, Path::new("config.json")) else { return };
    assert!(config.num_parameters() > 0);
    if let Ok(model) = CausalLm::hollow(config, DType::F32, &Device::Cpu) {
        assert!(model.params().bytes() > 0);
    }
}

/// The header of a file of tensors, the tensors that it names, and the index of several files.
fn safetensors(input: &[u8]) {
    let path = put("safetensors", "model.safetensors", input);
    if let Ok(file) = SafetensorsFile::open(&path) {
        let shapes: Vec<(String, Vec<usize>)> =
            file.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
        for (name, shape) in shapes {
            let read = file.read(&name, &shape, DType::F32, &Device::Cpu);
            assert!(read.is_err() || read.is_ok_and(|tensor| tensor.dims() == shape));
        }
    }
    put("safetensors_index", "config.json", TINY_CONFIG);
    let index = put("safetensors_index", "model.safetensors.index.json", input);
    if let Some(folder) = index.parent() {
        assert!(CausalLm::load(folder, None, &Device::Cpu).is_err(), "there are no shards");
    }
}

const TINY_CONFIG: &[u8] = br#"{ "model_type": "llama", "vocab_size": 8, "hidden_size": 4,
    "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1 }"#;

/// The list of a checkpoint's files.
fn manifest(input: &[u8]) {
    put("manifest", "weights.safetensors", b"weights");
    let path = put("manifest", MANIFEST_NAME, input);
    if let Some(folder) = path.parent() {
        verify(&RealFs, folder).expect("a folder that can be read can be judged");
    }
}

/// A line from the control socket.
fn control_request(input: &[u8]) {
    assert!(fuzzing::control_answer(input).contains("answer"));
}

/// The body of a request to `/v1`; the first byte says to which of its two faces.
fn openai_request(input: &[u8]) {
    if let Some((first, body)) = input.split_first() {
        fuzzing::openai_request(first % 2 == 0, body);
    }
}
