//! Short versions of the campaigns of `chandler-faults`: kills, failing operations, power losses.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use chandler_durable::{RealFs, SealedFolder, Verdict, verify};
use chandler_faults::io_errors::{self, Failing, Outcome};
use chandler_faults::kills;
use chandler_faults::power::{self, Effort};
use chandler_faults::soak::{self, Duty};
use chandler_faults::{Call, Oracle, Random, Scenario, can_trace};

use crate::python::skipped;
use crate::support::put;

/// The undisturbed run, made once.
fn scene() -> Option<&'static (Scenario, Oracle)> {
    static SCENE: OnceLock<Option<(Scenario, Oracle)>> = OnceLock::new();
    let scene = SCENE.get_or_init(|| {
        if !can_trace() {
            skipped("this sandbox forbids to trace a process");
            return None;
        }
        let scenario = Scenario::small(Path::new(env!("CARGO_BIN_EXE_chandler")), 4).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let oracle = Oracle::ask(&scenario, &folder.path().join("state")).unwrap();
        Some((scenario, oracle))
    });
    scene.as_ref()
}

/// Both halves at the same time: the tests of a file run beside each other anyhow.
fn kill(seed: u64) {
    let Some((scenario, oracle)) = scene() else { return };
    let tally = kills::at_random(scenario, oracle, 150, seed).unwrap();
    assert!(tally.kills >= 150 && tally.finished > 0, "{tally:?}");
}

#[test]
fn a_hundred_and_fifty_random_kills() {
    kill(1);
}

#[test]
fn a_hundred_and_fifty_others() {
    kill(2);
}

#[test]
fn kills_at_boundaries_and_again_in_the_recovery() {
    const EVERY: usize = 9;
    let Some((scenario, oracle)) = scene() else { return };
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().canonicalize().unwrap().join("state");
    scenario.prepare(&state).unwrap();
    let all = kills::boundaries(scenario, &state).unwrap();
    assert!(all.len() > 50, "{all:?}");
    let mut random = Random::new(3);
    let mut tally = kills::Tally::default();
    for first in all.iter().step_by(EVERY) {
        let mut one = |second: Vec<kills::Boundary>| {
            let at = random.below(second.len() as u64) as usize;
            vec![second[at].clone()]
        };
        kills::at_boundary(scenario, oracle, first, &mut one, &mut tally).unwrap();
    }
    assert!(tally.finished as usize >= 2 * (all.len() / EVERY), "{tally:?}");
}

/// Has every so many operations fail until the run has no more.
fn fail(failing: Failing, first: u64, stride: usize) {
    let Some((scenario, oracle)) = scene() else { return };
    let (mut survived, mut ended) = (0, 0);
    for number in (first..).step_by(stride) {
        match io_errors::at(scenario, oracle, failing, number).unwrap() {
            Outcome::NotReached => break,
            Outcome::Survived => survived += 1,
            Outcome::Ended(code) => {
                assert_ne!(code, 0);
                ended += 1;
            }
        }
    }
    assert!(ended > 0 && survived + ended > 10, "{survived} survived, {ended} ended");
}

#[test]
fn a_broken_checkpoint_is_put_aside_and_the_one_before_it_used() {
    type Damage = fn(&Path);
    let flip: Damage = |folder| {
        let path = folder.join("weights.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        put(&path, bytes);
    };
    let cut: Damage = |folder| {
        let path = folder.join("optimizer.safetensors");
        let bytes = fs::read(&path).unwrap();
        put(&path, &bytes[..bytes.len() - 1]);
    };
    let missing: Damage = |folder| fs::remove_file(folder.join("optimizer.safetensors")).unwrap();
    let swapped: Damage = |folder| {
        let [a, b, c] =
            ["weights.safetensors", "optimizer.safetensors", "x"].map(|n| folder.join(n));
        for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
            fs::copy(from, to).unwrap();
            fs::remove_file(from).unwrap();
        }
    };
    let garbled: Damage = |folder| put(&folder.join("manifest.json"), "{\"version\": 1, \"fil");
    // Of the same size, and whole on their own.
    let of_before: Damage = |folder| {
        let before = folder.with_file_name("checkpoint-2");
        for name in ["weights.safetensors", "optimizer.safetensors"] {
            fs::copy(before.join(name), folder.join(name)).unwrap();
        }
    };
    let empty: Damage = |folder| put(&folder.join("weights.safetensors"), "");
    // What no file's hash covers.
    let other_step: Damage = |folder| {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let changed = text.replace("\"step\": 4", "\"step\": 5");
        assert_ne!(changed, text);
        put(&path, changed);
    };
    let renamed: Damage = |folder| {
        fs::remove_dir_all(folder).unwrap();
        let before = folder.with_file_name("checkpoint-2");
        fs::create_dir(folder).unwrap();
        for name in ["weights.safetensors", "optimizer.safetensors"] {
            fs::copy(before.join(name), folder.join(name)).unwrap();
        }
    };
    let Some((scenario, oracle)) = scene() else { return };
    let all = [flip, cut, missing, swapped, garbled, of_before, empty, other_step, renamed];
    for (number, damage) in all.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let state = cut_off(scenario, &folder);
        damage(&state.join("checkpoints/job-1/checkpoint-4"));
        let output = scenario.live(&state).unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(log.contains("checkpoint-4 is broken"), "damage {number}:\n{log}");
        assert!(log.contains("goes on after step 2"), "damage {number}:\n{log}");
        oracle.check(&state).unwrap();
        let aside = fs::read_dir(state.join("checkpoints/job-1/quarantine")).unwrap().count();
        assert_eq!(aside, 1, "damage {number}");
    }
}

/// A state directory whose daemon was killed with a checkpoint of step 4 behind it.
fn cut_off(scenario: &Scenario, folder: &tempfile::TempDir) -> PathBuf {
    let state = folder.path().canonicalize().unwrap().join("state");
    scenario.prepare(&state).unwrap();
    let at_model = |call: &Call| call.to.as_deref() == Some(Path::new("model"));
    assert!(kills::kill_when(scenario, &state, at_model).unwrap());
    state
}

#[test]
fn a_job_is_not_lost_over_settings_that_were_changed_in_the_middle_of_it() {
    let Some((scenario, oracle)) = scene() else { return };
    let folder = tempfile::tempdir().unwrap();
    let state = cut_off(scenario, &folder);
    let changed = [
        ("train.per_device_train_batch_size=3", "batch"),
        ("train.learning_rate=0.5", "hyperparameters"),
        ("train.optim=adamw_8bit", "optimizer"),
    ];
    for (setting, named) in changed {
        let output = scenario.daemon(&state).unwrap().args(["--set", setting]).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{setting}");
        assert!(log.contains(&format!("belongs to another run: {named} was")), "{setting}:\n{log}");
        assert!(log.contains("hint:") && log.contains("checkpoints/job-1"), "{setting}:\n{log}");
        assert!(state.join("checkpoints/job-1/checkpoint-4").is_dir(), "{setting}");
        assert_eq!(fs::read_dir(state.join("processing")).unwrap().count(), 1, "{setting}");
    }
    // With the settings that it began with it goes on as if nothing had been.
    assert!(scenario.live(&state).unwrap().status.success());
    oracle.check(&state).unwrap();
}

#[test]
fn a_later_format_is_refused_and_stays() {
    let Some((scenario, _)) = scene() else { return };
    let folder = tempfile::tempdir().unwrap();
    let state = cut_off(scenario, &folder);
    let place = state.join("checkpoints/job-1/checkpoint-4");
    let Verdict::Whole(manifest) = verify(&RealFs, &place).unwrap() else { panic!("not whole") };
    let mut extra = manifest.extra;
    extra["format"] = 999.into();
    let mut again = SealedFolder::begin(&RealFs, &place.with_file_name("checkpoint-5")).unwrap();
    for file in &manifest.files {
        again.add_bytes(&file.name, &fs::read(place.join(&file.name)).unwrap()).unwrap();
    }
    again.seal(extra).unwrap();
    let output = scenario.live(&state).unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && log.contains("its format is 999"), "{log}");
    assert!(state.join("checkpoints/job-1/checkpoint-5/manifest.json").is_file());
    assert_eq!(fs::read_dir(state.join("processing")).unwrap().count(), 1);
}

#[test]
fn a_file_that_ends_the_daemon_three_times_at_the_same_step_is_given_up_and_the_next_is_learned() {
    let Some((scenario, _)) = two_files() else { return };
    let mut scenario = scenario.clone();
    scenario.settings.push("daemon.max_attempts=3".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().canonicalize().unwrap().join("state");
    scenario.prepare(&state).unwrap();
    let at_model = |call: &Call| call.to.as_deref() == Some(Path::new("model"));
    for life in 1..=3 {
        assert!(kills::kill_when(&scenario, &state, at_model).unwrap(), "life {life}");
    }
    let output = scenario.live(&state).unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let names = |folder: &str| {
        let entries = fs::read_dir(state.join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        names("failed"),
        ["rows.jsonl", "rows.jsonl.report.json", "rows.jsonl.report.txt"],
        "{log}"
    );
    assert_eq!(names("done"), ["rows2.jsonl"], "{log}");
}

/// A model is replaced by the next one, and checkpoints go while others come.
fn two_files() -> Option<&'static (Scenario, Oracle)> {
    static SCENE: OnceLock<Option<(Scenario, Oracle)>> = OnceLock::new();
    scene()?;
    let scene = SCENE.get_or_init(|| {
        let binary = Path::new(env!("CARGO_BIN_EXE_chandler"));
        let scenario = Scenario::two_files(binary, 2).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let oracle = Oracle::ask(&scenario, &folder.path().join("state")).unwrap();
        Some((scenario, oracle))
    });
    scene.as_ref()
}

#[test]
fn kills_while_a_second_file_is_learned_from() {
    let Some((scenario, oracle)) = two_files() else { return };
    let tally = kills::at_random(scenario, oracle, 40, 5).unwrap();
    assert!(tally.kills >= 40 && tally.finished > 0, "{tally:?}");
}

#[test]
fn no_power_while_a_second_file_is_learned_from() {
    let Some((scenario, oracle)) = two_files() else { return };
    let effort = Effort { losses: 6, life_every: 150, stride: 5, disk_lies: false };
    let tally = power::campaign(scenario, oracle, effort, 9, &mut |_| {}).unwrap();
    assert!(tally.states > 300 && tally.lives > 1, "{tally:?}");
}

#[test]
fn signals_at_any_moment() {
    const EVERY: usize = 47;
    let Some((scenario, oracle)) = scene() else { return };
    let mut signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP].into_iter().cycle();
    let mut moments = (3..).step_by(EVERY);
    let sent = moments
        .find(|at| !kills::at_signal(scenario, oracle, signals.next().unwrap(), *at).unwrap());
    assert!(sent.unwrap() > 400, "there were so few operations");
}

#[test]
fn operations_that_fail() {
    fail(Failing::Once(libc::EIO), 1, 29);
}

#[test]
fn a_disk_that_is_full_from_some_operation_on() {
    fail(Failing::Full, 5, 61);
}

#[test]
fn a_full_disk_is_waited_for() {
    let Some((scenario, oracle)) = scene() else { return };
    for number in [180, 300, 420] {
        let words = io_errors::full_for_a_while(scenario, oracle, number, 3).unwrap();
        assert!(
            words.contains("waiting, nothing is lost") && words.contains("free some room"),
            "{number}: {words}"
        );
    }
}

/// Says in the end where it came to; 77 where this system lets nobody mount.
const ON_A_TMPFS: &str = r#"
place=$1 out=$2 model=$3 data=$4; shift 4
mount -t tmpfs -o size=40m none "$place" || exit 77
"$@" init --dir "$place/state" --model "$model" > /dev/null || exit 5
cp "$data" "$place/state/inbox/rows.jsonl"
while [ "$(df --output=avail -k "$place" | tail -1)" -gt 64 ]; do
  head -c 16384 /dev/zero >> "$place/filler" || break
done
"$@" run --dir "$place/state" $SETTINGS 2> "$out/words" & daemon=$!
patience=300
until "$@" status --dir "$place/state" --json 2> /dev/null | grep -q '"waiting": "'; do
  sleep 0.1; patience=$((patience - 1)); [ "$patience" -gt 0 ] || exit 2
done
"$@" status --dir "$place/state" > "$out/status"
rm "$place/filler"
until [ -e "$place/state/done/rows.jsonl" ]; do
  sleep 0.1; patience=$((patience - 1)); [ "$patience" -gt 0 ] || exit 3
done
"$@" stop --dir "$place/state" > /dev/null; wait "$daemon" || exit 4
cp -r "$place/state" "$out/state"
"#;

#[test]
fn a_full_tmpfs_is_waited_for() {
    let Some((scenario, oracle)) = scene() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [place, out] = ["place", "out"].map(|name| folder.path().join(name));
    for folder in [&place, &out] {
        fs::create_dir(folder).unwrap();
    }
    let settings: Vec<String> =
        scenario.settings.iter().map(|setting| format!("--set {setting}")).collect();
    let ended = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", ON_A_TMPFS, "sh"])
        .args([&place, &out, &scenario.model, &scenario.data[0], &scenario.binary])
        .env("SETTINGS", settings.join(" "))
        .envs(scenario.environment.iter().cloned())
        .output();
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    match ended.as_ref().map(|output| output.status.code()) {
        Err(_) | Ok(Some(1 | 77)) if !out.join("words").exists() => {
            return skipped("this sandbox forbids to mount a tmpfs");
        }
        code => assert_eq!(code.unwrap(), Some(0), "{}{}", read("status"), read("words")),
    }
    assert!(read("status").contains("disk is full"), "{}", read("status"));
    assert!(read("words").contains("waiting, nothing is lost"), "{}", read("words"));
    oracle.check(&out.join("state")).unwrap();
}

#[test]
fn power_losses() {
    let Some((scenario, oracle)) = scene() else { return };
    let effort = Effort { losses: 6, life_every: 40, stride: 5, disk_lies: false };
    let tally = power::campaign(scenario, oracle, effort, 4, &mut |_| {}).unwrap();
    assert!(tally.states > 100 && tally.lives > 5, "{tally:?}");
}

#[test]
fn a_disk_that_lies_about_its_syncs_is_found_out() {
    let Some((scenario, oracle)) = scene() else { return };
    let effort = Effort { losses: 6, life_every: 1000, stride: 5, disk_lies: true };
    let found = power::campaign(scenario, oracle, effort, 4, &mut |_| {}).unwrap_err();
    assert!(format!("{found:#}").contains("after operation"), "{found:#}");
}

/// Each disturbance once, a kill half way, and nothing that stays open.
#[test]
fn a_daemon_that_is_disturbed_works_on() {
    let scenario = Scenario::small(Path::new(env!("CARGO_BIN_EXE_chandler")), 4).unwrap();
    let duty = Duty { length: Duration::from_secs(50), every: Duration::ZERO };
    let seen = soak::run(&scenario, duty).unwrap();
    assert_eq!(seen["lives"].as_array().map(Vec::len), Some(2), "{seen}");
    assert!(seen["done"].as_u64().is_some_and(|done| done > 3), "{seen}");
    for life in [&seen["lives"][0], &seen["lives"][1], &seen["parent"]] {
        let descriptors = &life["descriptors"];
        let [second, last] =
            ["second_quarter", "last_quarter"].map(|part| descriptors[part].as_u64().unwrap());
        assert!(last <= second + 8, "{seen}");
    }
}
