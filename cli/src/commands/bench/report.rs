//! What a bench prints: a table for people and, where asked for, one line of JSON.

use chandler_kernels::profile;
use chandler_vram::{Bytes, HostMeter, counting};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::kernels::product_peak;
use super::process::ProcessStat;
use super::{ModelArgs, median};
use crate::engine::{device_pool, open_device};
use crate::failure::Failure;
use crate::host;
use crate::output;

/// What happened in the measured rounds (steps, or batches of answers).
#[derive(Debug)]
pub(super) struct Measured {
    /// Of one round.
    pub(super) tokens: usize,
    /// Of one round.
    pub(super) flops: f64,
    /// Of each round.
    pub(super) seconds: Vec<f64>,
    pub(super) ops: Vec<profile::Row>,
    pub(super) before: Option<ProcessStat>,
    pub(super) after: Option<ProcessStat>,
}

/// What is said beside it.
#[derive(Debug)]
pub(super) struct About {
    pub(super) command: &'static str,
    pub(super) shape: Value,
    pub(super) settings: Value,
    pub(super) planned_peak_bytes: u64,
    pub(super) seconds_to_model: Option<f64>,
    pub(super) seconds_to_first_step: Option<f64>,
    /// Of each step, the warm-up's included.
    pub(super) losses: Vec<f64>,
}

/// The line of JSON.
#[derive(Debug, Serialize)]
struct Report {
    command: &'static str,
    shape: Value,
    settings: Value,
    tokens_per_s_median: f64,
    tokens_per_s_best: f64,
    /// Of each measured round.
    seconds: Vec<f64>,
    seconds_to_model: Option<f64>,
    seconds_to_first_step: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    losses: Vec<f64>,
    peak_rss_bytes: Option<u64>,
    planned_peak_bytes: u64,
    measured_peak_bytes: Option<u64>,
    model_flops_per_token: f64,
    gemm_peak_flops_per_s: f64,
    model_flops_utilisation: f64,
    page_faults_per_round: Option<f64>,
    system_seconds_per_round: Option<f64>,
    user_seconds_per_round: Option<f64>,
    time_by_op: Map<String, Value>,
    cpu: Option<String>,
    threads: usize,
    version: &'static str,
}

/// Prints what was measured. Memory is read first, then the machine's peak is measured.
pub(super) fn print(
    about: About,
    measured: &Measured,
    args: &ModelArgs,
    as_json: bool,
) -> Result<(), Failure> {
    let report = report(about, measured, args)?;
    output::print(&output::table(&summary(&report)))?;
    output::print(&format!("\n{}", output::table(&by_op(measured))))?;
    if as_json {
        print_line(&report)?;
    }
    Ok(())
}

/// One line of JSON.
pub(super) fn print_line(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value)
        .map_err(|error| Failure::new(crate::exit::Exit::Error, error, None))?;
    output::print(&format!("{line}\n"))
}

fn report(about: About, measured: &Measured, args: &ModelArgs) -> Result<Report, Failure> {
    let peak_rss_bytes = HostMeter::new().read_host().peak_rss;
    let pool = device_pool();
    let measured_peak_bytes =
        pool.map_or_else(counting::high_water_bytes, |pool| Some(pool.used_high));
    let device = open_device(args.device, None)?;
    let gemm_peak_flops_per_s = product_peak(args.dtype.dtype(), &device)?;
    let tokens = measured.tokens as f64;
    let median_s = median(&measured.seconds);
    let best_s = measured.seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let rounds = measured.seconds.len().max(1) as f64;
    let per_round = |of: fn(&ProcessStat) -> f64| {
        Some((of(measured.after.as_ref()?) - of(measured.before.as_ref()?)) / rounds)
    };
    Ok(Report {
        command: about.command,
        shape: about.shape,
        settings: about.settings,
        tokens_per_s_median: tokens / median_s,
        tokens_per_s_best: tokens / best_s,
        seconds: measured.seconds.clone(),
        seconds_to_model: about.seconds_to_model,
        seconds_to_first_step: about.seconds_to_first_step,
        losses: about.losses,
        peak_rss_bytes,
        planned_peak_bytes: about.planned_peak_bytes,
        measured_peak_bytes,
        model_flops_per_token: measured.flops / tokens,
        gemm_peak_flops_per_s,
        model_flops_utilisation: measured.flops / median_s / gemm_peak_flops_per_s,
        page_faults_per_round: per_round(|stat| stat.page_faults as f64),
        system_seconds_per_round: per_round(|stat| stat.system_s),
        user_seconds_per_round: per_round(|stat| stat.user_s),
        time_by_op: json_by_op(measured),
        cpu: host::cpu().model,
        threads: host::cpu().threads.unwrap_or(1),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Seconds that no op accounts for.
fn outside_of_ops(measured: &Measured) -> f64 {
    let within: f64 = measured.ops.iter().map(|row| row.nanoseconds as f64 * 1e-9).sum();
    (measured.seconds.iter().sum::<f64>() - within).max(0.0)
}

fn json_by_op(measured: &Measured) -> Map<String, Value> {
    let row = |row: &profile::Row| {
        let seconds = row.nanoseconds as f64 * 1e-9;
        let value = json!({
            "calls": row.calls, "seconds": seconds, "flops": row.flops, "bytes": row.bytes,
        });
        (row.op.name().to_owned(), value)
    };
    let outside = json!({ "seconds": outside_of_ops(measured) });
    let outside = std::iter::once(("outside_of_ops".to_owned(), outside));
    measured.ops.iter().map(row).chain(outside).collect()
}

fn by_op(measured: &Measured) -> Vec<Vec<String>> {
    let all = measured.seconds.iter().sum::<f64>();
    let rounds = measured.seconds.len().max(1) as f64;
    let heads = ["op", "calls", "ms/round", "share", "GFLOP/s", "GB/s"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / all);
    let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds / rounds);
    for row in &measured.ops {
        let seconds = row.nanoseconds as f64 * 1e-9;
        rows.push(vec![
            row.op.name().to_owned(),
            format!("{}", row.calls),
            ms(seconds),
            share(seconds),
            rate(row.flops as f64, seconds),
            rate(row.bytes as f64, seconds),
        ]);
    }
    let outside = outside_of_ops(measured);
    rows.push(vec!["outside of ops".to_owned(), String::new(), ms(outside), share(outside)]);
    rows
}

/// Billions a second; nothing where nothing was counted.
pub(super) fn rate(count: f64, seconds: f64) -> String {
    if count > 0.0 { format!("{:.1}", count / seconds / 1e9) } else { String::new() }
}

fn summary(report: &Report) -> Vec<Vec<String>> {
    let bytes =
        |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |b| Bytes(b).to_string());
    let number = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.3} {unit}"))
    };
    let utilisation = format!(
        "{:.1} % of {:.0} GFLOP/s",
        100.0 * report.model_flops_utilisation,
        report.gemm_peak_flops_per_s / 1e9
    );
    let faults = report.page_faults_per_round.map_or_else(String::new, |n| format!("{n:.0}, "));
    let rows = [
        ("tokens/s, median", format!("{:.1}", report.tokens_per_s_median)),
        ("tokens/s, best", format!("{:.1}", report.tokens_per_s_best)),
        ("model FLOPs utilisation", utilisation),
        ("peak resident memory", bytes(report.peak_rss_bytes)),
        ("planned peak", bytes(Some(report.planned_peak_bytes))),
        ("measured peak of the heap", bytes(report.measured_peak_bytes)),
        ("model ready after", number(report.seconds_to_model, "s")),
        ("first step done after", number(report.seconds_to_first_step, "s")),
        (
            "page faults, kernel time a round",
            format!("{faults}{}", number(report.system_seconds_per_round, "s")),
        ),
    ];
    let mut rows: Vec<_> = rows.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    if let (Some(first), Some(last)) = (report.losses.first(), report.losses.last()) {
        rows.push(vec!["loss, first and last step".to_owned(), format!("{first:.4}, {last:.4}")]);
    }
    rows
}
