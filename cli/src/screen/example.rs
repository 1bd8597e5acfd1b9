//! Made-up scenes for the tests of this folder.

use chandler_vram::Category;
use serde_json::json;

use super::scene::{Daemon, Point, Sample, Scene, ShownEval, ShownPlan, ShownRun};
use crate::priority::Priority;
use crate::store::{Event, Job, JobState, RunState};

const MIB: u64 = 1 << 20;

fn job(id: i64, name: &str, state: JobState, priority: Priority) -> Job {
    Job {
        id,
        file_name: name.to_owned(),
        path: format!("/state/{name}").into(),
        size_bytes: 1000,
        sha256: None,
        priority,
        state,
        attempts: u64::from(state != JobState::Queued),
        created_at: "2026-03-01T12:00:00Z".to_owned(),
        started_at: None,
        finished_at: None,
        report: (state == JobState::Failed)
            .then(|| json!({ "errors": ["line 3 is no JSON object"] })),
    }
}

fn event(id: i64, at: &str, job_id: Option<i64>, kind: &str, message: &str) -> Event {
    Event {
        id,
        at: at.to_owned(),
        job_id,
        run_id: None,
        kind: kind.to_owned(),
        message: message.to_owned(),
        details: None,
    }
}

fn points(last: u64) -> Vec<Point> {
    let point = |step: u64| {
        let t = step as f64 / 192.0;
        Point {
            step,
            loss: 3.2 * (-3.0 * t).exp() + 0.15 * (step as f64 * 0.7).sin().abs() + 0.1,
            grad_norm: 0.4 + 0.3 * (step as f64 * 0.3).cos().abs(),
            lr: 1.5e-3 * (step as f64 / 20.0).min(1.0) * (0.5 + 0.5 * (3.1 * t).cos()),
        }
    };
    (1..=last).map(point).collect()
}

fn daemon(extra: serde_json::Value) -> Daemon {
    let mut live = json!({
        "pid": 4321, "version": "0.1.0", "started_at": "2026-03-01T11:58:07.5Z",
        "paused": false, "stopping": false, "current": null, "waiting": null,
        "http": "http://127.0.0.1:7917",
        "memory": {
            "ledger": {
                "categories": [
                    { "category": Category::Weights, "bytes": 300 * MIB, "peak": 300 * MIB },
                    { "category": Category::Gradients, "bytes": 300 * MIB, "peak": 300 * MIB },
                    { "category": Category::OptimizerState, "bytes": 600 * MIB, "peak": 600 * MIB },
                    { "category": Category::Activations, "bytes": 180 * MIB, "peak": 220 * MIB },
                    { "category": Category::KvCache, "bytes": 0, "peak": 40 * MIB },
                ],
                "total": 1380 * MIB, "peak_total": 1420 * MIB, "phases": [],
            },
            "heap": 1450 * MIB, "heap_peak": 1500 * MIB, "limit": 2048 * MIB,
            "host": {
                "rss": 1600 * MIB, "peak_rss": 1700 * MIB, "total": 16384 * MIB,
                "available": 9000 * MIB, "cgroup_limit": null, "cgroup_used": null,
            },
            "gpus": null,
        },
    });
    for (key, value) in extra.as_object().unwrap() {
        live[key] = value.clone();
    }
    Daemon::Running(serde_json::from_value(live).unwrap())
}

/// A daemon in the middle of a run.
pub(super) fn running() -> Scene {
    let gpu = json!([{
        "index": 0, "uuid": null, "name": "NVIDIA RTX 4090", "used": 9_663_676_416_u64,
        "total": 25_769_803_776_u64, "free": null,
        "processes": [{ "pid": 99, "used": null, "name": "python" }],
    }]);
    let mut scene = Scene {
        state_dir: "/srv/chandler-state".to_owned(),
        daemon: daemon(json!({
            "current": {
                "job_id": 7, "file_name": "german.jsonl", "run_id": 12, "phase": "training",
                "progress": {
                    "step": 120, "total_steps": 192, "loss": 0.6134, "lr": 6.1e-4,
                    "tokens_per_s": 8412.0, "eta_s": 81.0, "memory_bytes": 1_677_721_600_u64,
                },
            },
        })),
        paused: false,
        base_model: Some("Qwen/Qwen3-0.6B (Qwen3ForCausalLM)".to_owned()),
        counts: vec![(JobState::Queued, 2), (JobState::Running, 1), (JobState::Done, 4)],
        jobs: vec![
            job(7, "german.jsonl", JobState::Running, Priority::Normal),
            job(9, "urgent.jsonl", JobState::Queued, Priority::High),
            job(8, "later.jsonl", JobState::Queued, Priority::Normal),
            job(6, "broken.jsonl", JobState::Failed, Priority::Low),
            job(5, "french.jsonl", JobState::Done, Priority::Normal),
        ],
        run: Some(ShownRun {
            id: 12,
            job_id: Some(7),
            state: RunState::Running,
            plan: Some(ShownPlan { peak: 1700 * MIB, budget: Some(2048 * MIB) }),
            points: points(120),
        }),
        eval: Some(ShownEval {
            run_id: 12,
            step: 96,
            figures: [("exact match", 0.125), ("loss", 1.25)].into(),
            samples: vec![
                Sample {
                    set: "held-out".to_owned(),
                    prompt: "user\nTranslate into German: nine blue owls sing\nassistant\n"
                        .to_owned(),
                    answer: "neun blaue Eulen singen".to_owned(),
                    reference: Some("neun blaue Eulen singen".to_owned()),
                    exact_match: Some(true),
                },
                Sample {
                    set: "held-out".to_owned(),
                    prompt: "user\nTranslate into German: two red foxes sleep\nassistant\n"
                        .to_owned(),
                    answer: "zwei rote Eulen\u{1b}[2J".to_owned(),
                    reference: Some("zwei rote Füchse schlafen".to_owned()),
                    exact_match: Some(false),
                },
            ],
        }),
        events: vec![
            event(31, "2026-03-01T12:00:05Z", Some(9), "queued", "entered the queue"),
            event(30, "2026-03-01T11:59:40Z", Some(6), "failed", "line 3 is no JSON object"),
            event(29, "2026-03-01T11:58:30Z", Some(5), "done", "was learned from"),
            event(28, "2026-03-01T11:58:10Z", None, "restarted", "the daemon was started again"),
        ],
        trouble: None,
    };
    if let Daemon::Running(live) = &mut scene.daemon {
        live.memory.gpus = serde_json::from_value(gpu).unwrap();
    }
    scene
}

/// A daemon that has nothing to do.
pub(super) fn idle() -> Scene {
    let mut scene = Scene { daemon: daemon(json!({})), ..running() };
    scene.jobs.retain(|job| job.state == JobState::Done);
    scene.counts = vec![(JobState::Done, 5)];
    if let Some(run) = &mut scene.run {
        run.state = RunState::Done;
    }
    scene
}

/// A daemon that takes no steps until it is told to.
pub(super) fn paused() -> Scene {
    let mut scene = Scene { paused: true, ..running() };
    if let Daemon::Running(live) = &mut scene.daemon {
        live.paused = true;
    }
    scene
}

/// A state directory without a daemon.
pub(super) fn not_running() -> Scene {
    let mut scene = Scene { daemon: Daemon::NotRunning, ..running() };
    for job in &mut scene.jobs {
        if job.state == JobState::Running {
            job.state = JobState::Queued;
        }
    }
    scene
}

/// A daemon that waits for room on the disk.
pub(super) fn waiting() -> Scene {
    let waiting = "cannot write /srv/chandler-state/checkpoints: the disk is full";
    let daemon = daemon(json!({ "waiting": waiting }));
    let mut scene = Scene { daemon, ..not_running() };
    if let Some(run) = &mut scene.run {
        run.state = RunState::Failed;
    }
    scene
}
