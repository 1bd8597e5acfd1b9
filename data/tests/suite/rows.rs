//! Rows, packed and not, and their order.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use chandler_data::{BuildProgress, DataOptions, Dataset, LossOn, OnBadLine, Packing, row_order};
use serde_json::json;

use crate::support::{MODELS, golden, goldens, ids, labels, open, pipeline};

fn chat_file(golden: &serde_json::Value) -> PathBuf {
    goldens().join(golden["dataset"].as_str().unwrap())
}

#[test]
fn rows_are_those_of_trl() {
    for name in MODELS {
        let train = golden(name, "train.json");
        let bytes = fs::read(chat_file(&train)).unwrap();
        let max_length = train["hp"]["max_length"].as_u64().unwrap() as usize;
        let dataset = open(&bytes, name, &DataOptions { max_length, ..DataOptions::default() });
        let dataset = dataset.unwrap();
        let expected = train["tokenized"].as_array().unwrap();
        assert_eq!(dataset.len(), expected.len(), "{name}");
        for (index, expected) in expected.iter().enumerate() {
            let row = dataset.row(index).unwrap();
            assert_eq!(row.input_ids, ids(&expected["input_ids"]), "{name} row {index}");
            assert_eq!(row.labels, labels(&expected["labels"]), "{name} row {index}");
            let line = train["kept_rows"][index].as_u64().unwrap() + 1;
            assert_eq!(dataset.source(index).unwrap().1, line, "{name} row {index}");
        }
        let stats = dataset.stats();
        assert_eq!(stats.records as usize, expected.len() + stats.untrained as usize);
        assert!(stats.p50 <= stats.p90 && stats.p99 <= stats.max && stats.max > 0);
    }
}

#[test]
fn packed_rows_are_those_of_trl() {
    for name in MODELS {
        let packed = golden(name, "packed.json");
        let bytes = fs::read(chat_file(&packed)).unwrap();
        let max_length = packed["hp"]["max_length"].as_u64().unwrap() as usize;
        let packing = Some(Packing::Bfd);
        let options = DataOptions { max_length, packing, ..DataOptions::default() };
        let dataset = open(&bytes, name, &options).unwrap().packed(Packing::Bfd, max_length);
        let expected = packed["packed_rows"].as_array().unwrap();
        assert_eq!(dataset.len(), expected.len(), "{name}");
        for (index, expected) in expected.iter().enumerate() {
            let row = dataset.row(index).unwrap();
            assert_eq!(row.seq_lengths, ids(&expected["seq_lengths"]), "{name} row {index}");
            assert_eq!(row.input_ids, ids(&expected["input_ids"]), "{name} row {index}");
            let mut labels = labels(&expected["labels"]);
            let mut start = 0;
            for length in &row.seq_lengths {
                labels[start] = -100;
                start += *length as usize;
            }
            assert_eq!(row.labels, labels, "{name} row {index}");
        }
    }
}

#[test]
fn the_order_is_that_of_transformers() {
    let path = goldens().join("goldens/hf_random_order.json");
    let expected: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let (n, seed) = (expected["n"].as_u64().unwrap(), expected["seed"].as_u64().unwrap());
    for (epoch, order) in expected["epochs"].as_array().unwrap().iter().enumerate() {
        let found: Vec<u32> =
            row_order(n as usize, seed, epoch as u64).iter().map(|row| *row as u32).collect();
        assert_eq!(found, ids(order), "epoch {epoch}");
    }
}

#[test]
fn every_shape_of_record_becomes_tokens() {
    let lines = [
        json!({ "text": "Once upon a time." }),
        json!({ "prompt": "2 + 2 =", "completion": " 4" }),
        json!({ "instruction": "Add.", "input": "2 and 2", "output": "4" }),
        json!({ "conversations": [
            { "from": "human", "value": "2 + 2?" }, { "from": "gpt", "value": "4" }
        ] }),
        json!({ "messages": [
            { "role": "user", "content": "2 + 2?" }, { "role": "assistant", "content": "4" }
        ] }),
    ];
    let bytes = lines.each_ref().map(ToString::to_string).join("\n");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs::File::create(&path).unwrap().write_all(bytes.as_bytes()).unwrap();
    let tokenizer = pipeline("qwen2");
    let options = DataOptions::default();
    let dataset = Dataset::open(&[path], &tokenizer, &options, folder.path(), &|_| {}).unwrap();
    let trained: Vec<String> = (0..dataset.len())
        .map(|index| {
            let labels = dataset.row(index).unwrap().labels;
            let ids: Vec<u32> =
                labels.iter().filter(|label| **label >= 0).map(|label| *label as u32).collect();
            tokenizer.tokenizer().decode(&ids, false).unwrap()
        })
        .collect();
    assert_eq!(
        trained,
        [
            "Once upon a time.<|im_end|>",
            " 4<|im_end|>",
            "4<|im_end|>\n",
            "4<|im_end|>\n",
            "4<|im_end|>\n"
        ]
    );
    let sources = dataset.source_lines(&[4, 0], 1 << 20, &|| ()).unwrap();
    assert_eq!(sources, [lines[4].to_string(), lines[0].to_string()]);
}

#[test]
fn the_cache_is_used_and_made_anew_when_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let file = goldens().join("data/chat.jsonl");
    let pipeline = pipeline("qwen3");
    let build = || {
        let made = AtomicU64::new(0);
        let count = |now: BuildProgress| made.store(now.records, Ordering::Relaxed);
        let options = DataOptions::default();
        let files = std::slice::from_ref(&file);
        let dataset = Dataset::open(files, &pipeline, &options, folder.path(), &count).unwrap();
        (dataset.row(5).unwrap(), made.load(Ordering::Relaxed) > 0)
    };
    let (row, made) = build();
    assert!(made);
    assert_eq!(build(), (row.clone(), false));
    let cache = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    for damage in 0..3 {
        let bytes = fs::read(&cache).unwrap();
        let mut file = OpenOptions::new().write(true).truncate(true).open(&cache).unwrap();
        match damage {
            0 => file.write_all(&bytes[..bytes.len() - 9]).unwrap(),
            1 => file.write_all(&[&[bytes[0] ^ 1], &bytes[1..]].concat()).unwrap(),
            _ => {}
        }
        assert_eq!(build(), (row.clone(), true), "damage {damage}");
    }
}

#[test]
fn bad_lines_can_be_left_out() {
    let text = "{\"text\": \"a b c d\"}\nnonsense\n{\"text\": \"e f\"}\n{\"x\": 1}\n";
    let skip = DataOptions { on_bad_line: OnBadLine::Skip, ..DataOptions::default() };
    let dataset = open(text.as_bytes(), "qwen3", &skip).unwrap();
    assert_eq!((dataset.len(), dataset.stats().bad_lines), (2, 2));
    let lines: Vec<u64> = dataset.bad_lines().iter().map(|bad| bad.line).collect();
    assert_eq!(lines, [2, 4]);
}

#[test]
fn many_rows_keep_their_order() {
    let text: String = (0..10_000).map(|n| format!("{{\"text\": \"number {n}\"}}\n")).collect();
    let all = DataOptions { loss_on: LossOn::All, ..DataOptions::default() };
    let dataset = open(text.as_bytes(), "smol-llama", &all).unwrap();
    assert_eq!(dataset.len(), 10_000);
    let pipeline = pipeline("smol-llama");
    for index in [0, 1, 4095, 4096, 9999] {
        let row = dataset.row(index).unwrap();
        let text = pipeline.tokenizer().decode(&row.input_ids, true).unwrap();
        assert!(text.contains(&format!("number {index}")), "{text}");
    }
    let half = dataset.select(&[9, 4]);
    assert_eq!(half.row(1).unwrap(), dataset.row(4).unwrap());
    let wrapped = dataset.packed(Packing::Wrapped, 64);
    let tokens: usize = (0..wrapped.len()).map(|row| wrapped.row_length(row)).sum();
    assert_eq!(tokens as u64, dataset.stats().tokens);
}

#[test]
fn a_digest_tells_rows_from_others() {
    let text = "{\"text\": \"a b c d\"}\n{\"text\": \"e f\"}\n{\"text\": \"g\"}\n";
    let options = DataOptions { loss_on: LossOn::All, ..DataOptions::default() };
    let open = |text: &str, options| open(text.as_bytes(), "qwen3", options).unwrap();
    let rows = open(text, &options);
    assert_eq!(rows.digest(), open(text, &options).digest());
    assert_eq!(rows.digest(), rows.select(&[0, 1, 2]).digest());
    let others = [
        rows.select(&[1, 0, 2]),
        rows.select(&[0, 1]),
        rows.packed(Packing::Wrapped, 8),
        open(&text.replace('g', "h"), &options),
        open(&text.replace("\"e f\"", "\"e\""), &options),
        open(text, &DataOptions { max_length: 2, ..options.clone() }),
    ];
    let mut all: Vec<String> = others.iter().chain([&rows]).map(Dataset::digest).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), others.len() + 1);
}
