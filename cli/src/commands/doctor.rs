//! `chandler doctor`: is everything there that a run needs?

use chandler_vram::{Bytes, GpuReading, HostMeter, NvmlMeter};
use clap::Args;
use serde::Serialize;

use super::App;
use crate::config::Config;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::host;
use crate::lock;
use crate::output;
use crate::store::Store;

const BYTES_PER_GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// A fact that is neither good nor bad.
    Info,
    Warning,
    Problem,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    hint: Option<String>,
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { name, verdict, detail: detail.into(), hint: None }
    }

    fn problem(name: &'static str, failure: &Failure) -> Self {
        let detail: Vec<String> = failure.error.chain().map(ToString::to_string).collect();
        Self {
            name,
            verdict: Verdict::Problem,
            detail: detail.join(": "),
            hint: failure.hint.clone(),
        }
    }
}

pub(super) fn doctor(app: &App, args: &DoctorArgs) -> Result<Exit, Failure> {
    let (config_check, config) = configuration(app);
    let mut checks = vec![config_check];
    checks.extend(state_checks(app, &config));
    checks.extend(machine_checks());
    if args.json {
        output::print_json(&checks)?;
    } else {
        output::print(&render(&checks))?;
    }
    let healthy = checks.iter().all(|check| check.verdict != Verdict::Problem);
    Ok(if healthy { Exit::Ok } else { Exit::Error })
}

fn configuration(app: &App) -> (Check, Config) {
    match app.config(Vec::new()) {
        Err(failure) => (Check::problem("configuration", &failure), Config::default()),
        Ok(resolved) => {
            let model = resolved.config.model.path.as_ref();
            let check = match model {
                Some(model) => {
                    Check::new("configuration", Verdict::Ok, format!("model.path is {}", model.0))
                }
                None => Check {
                    hint: Some("set it in chandler.toml, or with --set model.path=…".to_owned()),
                    ..Check::new("configuration", Verdict::Warning, "model.path is not set")
                },
            };
            (check, resolved.config)
        }
    }
}

fn state_checks(app: &App, config: &Config) -> Vec<Check> {
    let state = match app.state() {
        Ok(state) => state,
        Err(failure) => return vec![Check::problem("state directory", &failure)],
    };
    let mut checks = Vec::new();
    checks.push(match state.create_folders().and_then(|()| state.check_writable()) {
        Ok(()) => Check::new("state directory", Verdict::Ok, state.root().display().to_string()),
        Err(error) => Check::problem("state directory", &error.into()),
    });
    checks.push(match chandler_durable::free_space(state.root()) {
        Ok(free_bytes) => disk(free_bytes, config.daemon.min_free_gib),
        Err(error) => {
            let hint = error.hint();
            Check::problem("disk", &Failure::new(Exit::Error, error, hint))
        }
    });
    checks.push(match Store::open(&state.database()).and_then(|store| store.check()) {
        Ok(None) => Check::new("database", Verdict::Ok, "opens, and is whole"),
        Ok(Some(damage)) => Check {
            hint: Some("stop the daemon, move chandler.db and its -wal and -shm aside".to_owned()),
            ..Check::new("database", Verdict::Problem, damage)
        },
        Err(error) => Check::problem("database", &error.into()),
    });
    checks.push(match lock::holder(&state) {
        Ok(None) => Check::new("lock", Verdict::Ok, "free: no daemon is running"),
        Ok(Some(None)) => Check::new("lock", Verdict::Info, "held by a process that is unknown"),
        Ok(Some(Some(holder))) => Check::new("lock", Verdict::Info, format!("held by {holder}")),
        Err(error) => {
            let hint = error.hint();
            Check::problem("lock", &Failure::new(Exit::StateDir, error, hint))
        }
    });
    checks
}

fn disk(free_bytes: u64, wanted_gib: f64) -> Check {
    let free_gib = free_bytes as f64 / BYTES_PER_GIB;
    let detail = format!("{free_gib:.1} GiB free, daemon.min_free_gib is {wanted_gib}");
    if free_gib >= wanted_gib {
        Check::new("disk", Verdict::Ok, detail)
    } else {
        Check {
            hint: Some("free some room, or lower daemon.min_free_gib".to_owned()),
            ..Check::new("disk", Verdict::Problem, detail)
        }
    }
}

fn machine_checks() -> Vec<Check> {
    let cpu = host::cpu();
    let threads = cpu.threads.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    let model = cpu.model.unwrap_or_else(|| "unknown model".to_owned());
    let features =
        if cpu.features.is_empty() { "none known".into() } else { cpu.features.join(" ") };
    let memory = HostMeter::new().read_host();
    let limit = memory.cgroup_limit.map_or_else(|| "none".to_owned(), |it| shown(Some(it)));
    let mut checks = vec![
        Check::new("cpu", Verdict::Info, format!("{model}, {threads} threads")),
        Check::new("cpu features", Verdict::Info, features),
        Check::new(
            "memory",
            Verdict::Info,
            format!(
                "{} in all, {} available, cgroup limit {limit}",
                shown(memory.total),
                shown(memory.available)
            ),
        ),
    ];
    checks.extend(gpu_checks());
    checks
}

/// Every GPU with what uses it. chandler trains on the CPU; a GPU that is full is still worth
/// knowing of.
fn gpu_checks() -> Vec<Check> {
    let nvml = NvmlMeter::new();
    let Some(gpus) = nvml.gpus() else {
        let reason = nvml.absence().unwrap_or("they cannot be listed");
        return vec![Check::new("gpu", Verdict::Info, format!("none found ({reason})"))];
    };
    let check = |gpu: GpuReading| {
        let name = gpu.name.as_deref().unwrap_or("unnamed");
        let users: Vec<String> = gpu
            .processes
            .iter()
            .flatten()
            .map(|process| format!("pid {} ({})", process.pid, shown(process.used)))
            .collect();
        let users =
            if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) };
        let detail = format!("{name}, {} of {} used{users}", shown(gpu.used), shown(gpu.total));
        Check::new("gpu", Verdict::Info, detail)
    };
    gpus.into_iter().map(check).collect()
}

fn shown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}

fn render(checks: &[Check]) -> String {
    let mut rows = Vec::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Info => "-",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        };
        rows.push(vec![mark.to_owned(), check.name.to_owned(), check.detail.clone()]);
        if let Some(hint) = &check.hint {
            rows.push(vec![String::new(), String::new(), format!("hint: {hint}")]);
        }
    }
    output::table(&rows)
}
