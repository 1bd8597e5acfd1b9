//! Commands do what a reader does with them: each page's are run, one after another, in a folder that
//! has what the page takes for granted.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::pages::{Block, blocks, pages, root};

/// The model of the pages, and what is small enough to be in its place.
const NAMED: &str = "models--Qwen--Qwen3-0.6B";
const SMALL: &str = "fixtures/goldens/models/qwen3";

/// Files of conversations that the pages speak of.
const CONVERSATIONS: [&str; 2] = ["conversations.jsonl", "chats.jsonl"];

/// What a plan takes of that model.
const QWEN3: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936,
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
    "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "bfloat16"
}"#;

/// So that it takes moments.
const QUICK: [(&str, &str); 9] = [
    ("CHANDLER_TRAIN_MAX_STEPS", "2"),
    ("CHANDLER_TRAIN_PER_DEVICE_TRAIN_BATCH_SIZE", "2"),
    ("CHANDLER_DATA_MAX_LENGTH", "160"),
    ("CHANDLER_EVAL_SAMPLES", "2"),
    ("CHANDLER_EVAL_MAX_NEW_TOKENS", "4"),
    ("CHANDLER_DAEMON_SETTLE_SECONDS", "0"),
    ("CHANDLER_DAEMON_POLL_SECONDS", "0.1"),
    ("CHANDLER_DAEMON_MIN_FREE_GIB", "0"),
    ("CHANDLER_DAEMON_RESTART", "false"),
];

/// A hub's cache with the small model under the name of the one that the pages take, so that its id is
/// found without a network; and a state directory that has learned from three files.
struct Prepared {
    folder: tempfile::TempDir,
}

impl Prepared {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("hub").join(NAMED);
        let commit = "0123456789012345678901234567890123456789";
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::create_dir_all(model.join("snapshots")).unwrap();
        chandler_durable::write(&model.join("refs/main"), commit.as_bytes()).unwrap();
        symlink(root().join(SMALL), model.join("snapshots").join(commit)).unwrap();
        let prepared = Self { folder };
        let steps = "chandler init --model Qwen/Qwen3-0.6B
            echo '{\"prompt\": \"1 + 1 =\", \"completion\": \" 2\"}' > chandler-state/evals/sums.jsonl
            for n in 1 2 3; do cp conversations.jsonl $n.jsonl; chandler add $n.jsonl; done
            \"$CHANDLER\" run --once --set http.enabled=false";
        let output = prepared.bash(&prepared.folder_of("before"), steps, &QUICK);
        assert!(output.status.success(), "{}", said(&output));
        prepared
    }

    /// A folder for a page's commands.
    fn folder_of(&self, page: &str) -> PathBuf {
        let folder = self.folder.path().join(page);
        fs::create_dir(&folder).unwrap();
        for name in CONVERSATIONS {
            fs::copy(root().join("fixtures/goldens/data/chat.jsonl"), folder.join(name)).unwrap();
        }
        fs::create_dir(folder.join("qwen3-0.6b")).unwrap();
        let config = folder.join("qwen3-0.6b/config.json");
        chandler_durable::write(&config, QWEN3.as_bytes()).unwrap();
        folder
    }

    /// The same with the state directory that has learned.
    fn folder_with_state(&self, page: &str) -> PathBuf {
        let folder = self.folder_of(page);
        let state = self.folder.path().join("before/chandler-state");
        let copy = Command::new("cp").arg("-r").arg(state).arg(&folder).status().unwrap();
        assert!(copy.success());
        folder
    }

    fn bash(&self, folder: &Path, text: &str, settings: &[(&str, &str)]) -> Output {
        // Two ports of this machine that nobody listens on.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [page, serve] =
            listeners.each_ref().map(|listener| listener.local_addr().unwrap().port().to_string());
        drop(listeners);
        let text = text.replace("127.0.0.1:7917", &format!("127.0.0.1:{page}"));
        let text = text.replace("127.0.0.1:7918", &format!("127.0.0.1:{serve}"));
        let terminal = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/book/terminal.sh");
        let script = format!("source '{}'\n{text}", terminal.display());
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["CHANDLER_", "HF_", "NOTIFY_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(&*name);
            }
        }
        command
            .args(["-c", &script])
            .current_dir(folder)
            .envs(settings.iter().copied())
            .env("CHANDLER", env!("CARGO_BIN_EXE_chandler"))
            .env("PORT_OF_PAGE", page)
            .env("PORT_OF_SERVE", serve)
            .env("RAYON_NUM_THREADS", "2")
            .env("NO_PROXY", "127.0.0.1")
            .env("HOME", folder)
            .env("HF_HUB_CACHE", self.folder.path().join("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let from = text.len().saturating_sub(6000);
    text.chars().skip(from).collect()
}

/// The commands of a block that CI does not run as they stand.
fn commands_to_run(block: &Block, ci: &str) -> String {
    let is_run_by_ci = |line: &str| {
        let command = line.split(" #").next().unwrap_or_default().trim();
        !command.is_empty() && ci.lines().any(|line| line.contains(command))
    };
    block.text.lines().filter(|line| !is_run_by_ci(line)).flat_map(|line| [line, "\n"]).collect()
}

/// Says that something is not looked at here; what a test prints that passes is shown to nobody.
fn skipped(what: &str) {
    std::io::stderr().write_all(format!("SKIPPED: {what}\n").as_bytes()).unwrap();
}

/// A program that a page takes for granted and that is not here.
fn missing(text: &str) -> Option<&'static str> {
    let is_used = |name: &str| text.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
    let is_there = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).exists())
    };
    ["curl", "jq"].into_iter().find(|name| is_used(name) && !is_there(name))
}

#[test]
fn the_commands_of_every_page_are_run_or_are_marked() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let prepared = Prepared::new();
    let mut seen = 0;
    for (page, text) in pages() {
        let name = page.file_stem().unwrap().to_str().unwrap();
        let mut script = String::new();
        for block in blocks(&text).iter().filter(|block| block.language == "sh") {
            let commands = commands_to_run(block, &ci);
            if block.no_run.is_some() || commands.trim().is_empty() {
                continue;
            }
            if let Some(program) = missing(&commands) {
                skipped(&format!("a block of {name}, for want of {program}"));
                continue;
            }
            script += &format!("{}{commands}", block.before);
            seen += commands.lines().count();
        }
        if script.is_empty() {
            continue;
        }
        let begun = std::time::Instant::now();
        let folder = prepared.folder_with_state(name);
        let output = prepared.bash(&folder, &format!("set -x\n{script}"), &QUICK);
        eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
        assert!(output.status.success(), "{}:\n{}", page.display(), said(&output));
    }
    assert!(seen > 40, "{seen} lines were run");
}

/// Whether two lines have the same words, where a number may differ as it does from machine to machine:
/// by 2 %, or 0.1.
fn is_nearly(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (shown.split_whitespace(), printed.split_whitespace());
    let is_near = |(one, other): (&str, &str)| match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => (one - other).abs() <= 0.1_f64.max(one.abs() / 50.0),
        _ => one == other,
    };
    shown.clone().count() == printed.clone().count() && shown.zip(printed).all(is_near)
}

#[test]
fn numbers_of_a_machine_may_differ_a_little_and_words_may_not() {
    assert!(is_nearly("  eval  10.62 GiB", "eval 10.6 GiB"));
    for other in ["eval 10.2 GiB", "eval 10.62 MiB", "eval 10.62", "of eval 10.62 GiB"] {
        assert!(!is_nearly("eval 10.62 GiB", other), "{other}");
    }
}

#[test]
fn what_a_page_shows_of_a_command_is_what_it_prints() {
    let prepared = Prepared::new();
    let mut seen = 0;
    for (page, text) in pages() {
        for (number, block) in blocks(&text).iter().enumerate() {
            let commands = block.shown_commands();
            if block.language != "text" || commands.is_empty() || block.no_run.is_some() {
                continue;
            }
            let name = format!("{}-{number}", page.file_stem().unwrap().to_str().unwrap());
            // Some show an error.
            let script: String = commands.iter().map(|line| format!("{line} || true\n")).collect();
            let printed = said(&prepared.bash(&prepared.folder_of(&name), &script, &[]));
            let shown = block.text.lines().filter(|line| !line.starts_with("$ ") && *line != "…");
            for line in shown {
                let is_printed = printed.lines().any(|printed| is_nearly(line, printed));
                assert!(is_printed, "{}:\n{line}\nis not in\n{printed}", page.display());
            }
            seen += commands.len();
        }
    }
    assert!(seen > 1, "{seen} commands were found");
}
