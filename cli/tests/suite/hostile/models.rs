//! Models that were made to do harm.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::{copy_of, edit, once, state_for, watched};
use crate::support::{fails, goldens, ok, put, run, text_of};

/// Each with what is said, and by which end.
const TEMPLATES: [(&str, &str, &str); 7] = [
    (
        "a string that grows within an expression",
        "{% set x = 'xxxxxxxxxxxxxxxx' %}{{ x | replace('x', x) | replace('x', x) | replace('x', x) \
         | replace('x', x) | replace('x', x) | replace('x', x) | replace('x', x) }}",
        "limits.worker_memory",
    ),
    (
        "a namespace that holds itself",
        "{% set ns = namespace() %}{% set ns.itself = ns %}{{ ns }}",
        "cannot be held by a namespace",
    ),
    (
        "a string that is doubled",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}\
         {% endfor %}{{ ns.s }}",
        "holds 16 MiB of text at most",
    ),
    (
        "a list that is doubled",
        "{% set ns = namespace(s=['x']) %}{% for i in range(60) %}{% set ns.s = (ns.s + ns.s) | list %}\
         {% endfor %}{{ ns.s | length }}",
        "",
    ),
    (
        "loops in loops",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
         {% endfor %}{% endfor %}{% endfor %}",
        "operations",
    ),
    (
        "much that is printed",
        "{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
        "prints more than",
    ),
    (
        "a macro that calls itself",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "recursion",
    ),
];

#[test]
fn templates_are_bounded_in_time_and_memory() {
    for (what, template, says) in TEMPLATES {
        let folder = tempfile::tempdir().unwrap();
        let model = copy_of("qwen3", folder.path());
        put(&model.join("chat_template.jinja"), template);
        let data = goldens().join("data/chat.jsonl");
        let mut args = vec!["data", "preview", text_of(&data), "--model", text_of(&model)];
        args.extend(["--set", "limits.worker_memory=512MiB", "--set", "limits.stall_seconds=20"]);
        let seen = watched(&args);
        assert!(matches!(seen.code, Some(1 | 4)), "{what}: {:?} {}", seen.code, seen.said);
        assert!(seen.said.contains(says) && seen.said.contains("hint: "), "{what}: {}", seen.said);
        assert!(seen.seconds < 30.0, "{what}: {} s", seen.seconds);
        assert!(seen.peak_bytes < 600 << 20, "{what}: {} bytes", seen.peak_bytes);
        // An answer is asked for by the same template.
        let seen = watched(&[
            "generate",
            "--model",
            text_of(&model),
            "--prompt",
            "Hello",
            "--set",
            "limits.worker_memory=512MiB",
        ]);
        assert!(matches!(seen.code, Some(1 | 4)), "{what}: {}", seen.said);
    }
}

#[test]
fn a_model_that_is_to_blame_stops_the_daemon_and_the_job_keeps_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    put(&model.join("chat_template.jinja"), TEMPLATES[0].1);
    let state = state_for(folder.path(), text_of(&model));
    ok(&["add", "--dir", &state, text_of(&goldens().join("data/chat.jsonl"))]);
    let seen = once(&state, &["--set", "limits.worker_memory=256MiB"]);
    assert_eq!(seen.code, Some(1), "{}", seen.said);
    assert!(seen.said.contains("the tokenizer or the chat template in"), "{}", seen.said);
    assert!(ok(&["jobs", "--dir", &state]).contains("queued"));
}

fn train(model: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    put(&data, "{\"text\": \"Hello, world!\"}\n");
    let out = folder.path().join("out");
    fails(
        1,
        &["train", "--model", text_of(model), "--data", text_of(&data), "--output", text_of(&out)],
    )
}

#[test]
fn tokenizers_without_bounds_are_refused() {
    // A file without end; sparse, it takes no room.
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    File::create(model.join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(train(&model).contains("is larger than 268435456 bytes"));
    // A decoder that would run where the model is trained.
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    edit(&model.join("tokenizer.json"), |tokenizer| {
        tokenizer["decoder"] =
            json!({ "type": "Replace", "pattern": { "Regex": "(x+x+)+y" }, "content": "" });
    });
    assert!(train(&model).contains("regular expression"));
    // A pipe would be waited for.
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    fs::remove_file(model.join("chat_template.jinja")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(model.join("chat_template.jinja")).status();
    assert!(made.unwrap().success());
    assert!(train(&model).contains("not a regular file"));
}

#[test]
fn ids_beyond_the_vocabulary_are_bad_lines_and_bad_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    edit(&model.join("tokenizer.json"), |tokenizer| {
        tokenizer["model"]["vocab"]["<boom>"] = json!(4_000_000_000_u32);
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 4_000_000_000_u32, "content": "<boom>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false
        }));
    });
    let data = folder.path().join("data.jsonl");
    put(&data, "{\"text\": \"Hello <boom>!\"}\n");
    let out = folder.path().join("out");
    let error = fails(
        4,
        &["train", "--model", text_of(&model), "--data", text_of(&data), "--output", text_of(&out)],
    );
    assert!(error.contains("outside of the model's vocabulary"), "{error}");
    let output = run(&["generate", "--model", text_of(&model), "--prompt", "a <boom>"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("outside of the model's vocabulary"), "{error}");
}

#[test]
fn pickles_are_refused_wherever_they_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_of("qwen3", folder.path());
    let weights = model.join("model.safetensors");
    let refused = |what: &str| {
        let error = train(&model);
        assert!(error.contains("is a pickle") && error.contains("save_pretrained"), "{error}");
        assert!(error.contains(what), "{error}");
    };
    put(&weights, b"PK\x03\x04 and so on");
    refused("model.safetensors");
    put(&weights, b"\x80\x02}q\x00X\x05\x00\x00\x00");
    refused("model.safetensors");
    fs::remove_file(&weights).unwrap();
    put(&model.join("pytorch_model.bin"), b"\x80\x02}q\x00");
    refused("pytorch_model.bin");
    let index = model.join("model.safetensors.index.json");
    put(&index, json!({ "weight_map": { "model.norm.weight": "shard.pt" } }).to_string());
    refused("shard.pt");
    let error = train(&model.join("pytorch_model.bin"));
    assert!(error.contains("is a pickle"), "{error}");
}

#[test]
fn links_out_of_the_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    put(&secret, "a private key");
    for name in ["LICENSE", "tokenizer.json", "model.safetensors"] {
        let inner = folder.path().join(format!("for-{name}"));
        fs::create_dir(&inner).unwrap();
        let model = copy_of("qwen3", &inner);
        let _ = fs::remove_file(model.join(name));
        symlink(&secret, model.join(name)).unwrap();
        let error = train(&model);
        assert!(error.contains("outside of the model folder"), "{name}: {error}");
        assert!(!error.contains("a private key"), "{error}");
    }
}
