//! `chandler bench kernels`: each op alone.

mod ops;

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use chandler_kernels::linear;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::ops::Bench;
use super::Precision;
use super::report::{print_line, rate};
use super::shape::Shape;
use crate::config::Place;
use crate::engine::{EngineError, open_device};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::host;
use crate::output;

#[derive(Debug, Args)]
pub(in crate::commands) struct KernelsArgs {
    /// Sizes of this model: small, qwen3-0.6b, or a config.json [default: the first two]
    #[arg(long, value_name = "NAME|CONFIG.json")]
    shape: Option<Shape>,
    /// The type to compute in [default: both]
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    /// Where: auto, cpu, cuda or such as cuda:1
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = super::place)]
    device: Place,
    /// Tokens of the micro-batch, which is one document
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = super::at_least_one)]
    seq_len: usize,
    /// Only ops whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Hold what each op computes against the same in f64 on the CPU; one that is off ends the command
    /// with an error
    #[arg(long)]
    check: bool,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// The best of several runs of one op.
#[derive(Debug, Serialize)]
struct Timing {
    shape: String,
    dtype: Precision,
    op: &'static str,
    size: String,
    seconds: f64,
    /// Of one run.
    flops: f64,
    /// That one run has to read and write, each input and output once.
    bytes: f64,
    /// Largest difference from the same op in f64, relative to the largest value of its tensor, where it
    /// was looked at.
    off: Option<f64>,
}

impl Timing {
    /// What [`off`](Self::off) may be: for f32 what the order of a sum does, and less than products
    /// of 19 bits (TF32) would be off by; for bf16 the rounding of a result and of what leads to it.
    fn bound(&self) -> f64 {
        match self.dtype {
            Precision::F32 => 5e-5,
            Precision::Bf16 => 1.6e-2,
        }
    }

    fn is_off(&self) -> bool {
        self.off.is_some_and(|off| off.is_nan() || off > self.bound())
    }
}

pub(super) fn kernels(args: &KernelsArgs) -> Result<Exit, Failure> {
    let shapes = match &args.shape {
        Some(shape) => vec![shape.clone()],
        None => vec![Shape::Small, Shape::Qwen3Of600M],
    };
    let precisions = args.dtype.map_or(vec![Precision::F32, Precision::Bf16], |one| vec![one]);
    let device = open_device(args.device, None)?;
    let mut timings = Vec::new();
    for shape in &shapes {
        let config = shape.config()?;
        for precision in &precisions {
            let mut bench = Bench::new(args, shape, *precision, device.clone());
            bench.all(&config).map_err(|error| EngineError::Model(error.into()))?;
            let found = bench.into_timings();
            output::print(&output::table(&rows(&found)))?;
            output::print("\n")?;
            timings.extend(found);
        }
    }
    if args.json {
        let cpu = host::cpu();
        print_line(&json!({
            "command": "kernels",
            "seq_len": args.seq_len,
            "timings": timings,
            "device": name(&device),
            "cpu": cpu.model,
            "threads": cpu.threads,
            "version": env!("CARGO_PKG_VERSION"),
        }))?;
    }
    match complaints(&timings) {
        text if text.is_empty() => Ok(Exit::Ok),
        text => Err(Failure::new(
            Exit::Error,
            anyhow::anyhow!("not what f64 gives:\n{text}"),
            Some("report this with the table above and what `chandler doctor` prints".to_owned()),
        )),
    }
}

fn name(device: &Device) -> &'static str {
    if device.is_cpu() { "cpu" } else { "cuda" }
}

/// A line for each op that is off.
fn complaints(timings: &[Timing]) -> String {
    let complaint = |timing: &Timing| {
        let off = timing.off.filter(|_| timing.is_off())?;
        let Timing { shape, op, size, dtype, .. } = timing;
        let (dtype, bound) = (dtype.name(), timing.bound());
        Some(format!("  {op} of {size} ({shape}, {dtype}): {off:.1e}, more than {bound:.1e}\n"))
    };
    timings.iter().filter_map(complaint).collect()
}

fn rows(timings: &[Timing]) -> Vec<Vec<String>> {
    let is_checked = timings.iter().any(|timing| timing.off.is_some());
    let mut heads: Vec<String> =
        ["shape", "dtype", "op", "size", "ms", "GFLOP/s", "GB/s"].map(str::to_owned).into();
    heads.extend(is_checked.then(|| "off".to_owned()));
    let row = |timing: &Timing| {
        let mut row = vec![
            timing.shape.clone(),
            timing.dtype.name().to_owned(),
            timing.op.to_owned(),
            timing.size.clone(),
            format!("{:.3}", 1e3 * timing.seconds),
            rate(timing.flops, timing.seconds),
            rate(timing.bytes, timing.seconds),
        ];
        row.extend(
            is_checked.then(|| timing.off.map_or(String::new(), |off| format!("{off:.1e}"))),
        );
        row
    };
    std::iter::once(heads).chain(timings.iter().map(row)).collect()
}

/// The shortest of several runs, in seconds: at least 3 and, where they are short, 200 ms of them. On a
/// GPU a run is one of several that are waited for together.
fn best_of<T>(device: &Device, mut run: impl FnMut() -> TensorResult<T>) -> TensorResult<f64> {
    const LEAST_RUNS: usize = 3;
    const LEAST_S: f64 = 0.2;
    let together = if device.is_cpu() { 1 } else { 8 };
    black_box(run()?);
    device.synchronize()?;
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < LEAST_RUNS || begun.elapsed().as_secs_f64() < LEAST_S {
        let started = Instant::now();
        for _ in 0..together {
            black_box(run()?);
        }
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64() / together as f64);
        runs += 1;
    }
    Ok(best)
}

/// Values between −0.5 and 0.5 that depend on their place alone.
fn tensor(shape: &[usize], dtype: DType) -> TensorResult<Tensor> {
    let count: usize = shape.iter().product();
    let value = |i: usize| {
        let mixed = (i as u32).wrapping_mul(0x9e37_79b1);
        ((mixed ^ (mixed >> 15)) >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), shape, &Device::Cpu)?
        .to_dtype(dtype)
}

/// FLOP/s of the best of a few large products in `dtype`: what a model's FLOP/s are held against.
pub(in crate::commands) fn product_peak(dtype: DType, device: &Device) -> Result<f64, Failure> {
    let sizes: &[[usize; 3]] = match device {
        Device::Cpu => &[[2048, 2048, 2048], [1024, 1024, 3072], [512, 4096, 1024]],
        _ => &[[8192, 8192, 8192], [16384, 1024, 3072]],
    };
    let measure = || {
        let mut peak = 0.0f64;
        for &[n, i, o] in sizes {
            let x = tensor(&[n, i], dtype)?.to_device(device)?;
            let weight = tensor(&[o, i], dtype)?.to_device(device)?;
            let seconds = best_of(device, || linear::forward(&x, &weight, None))?;
            peak = peak.max((2 * n * i * o) as f64 / seconds);
        }
        Ok(peak)
    };
    measure().map_err(|error: candle_core::Error| EngineError::Model(error.into()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_that_is_off_is_named() {
        let timing = |op, dtype, off| Timing {
            shape: "small".to_owned(),
            dtype,
            op,
            size: "8 x 8".to_owned(),
            seconds: 1.0,
            flops: 1.0,
            bytes: 1.0,
            off,
        };
        let timings = [
            timing("right", Precision::F32, Some(1e-6)),
            timing("rounded", Precision::Bf16, Some(4e-3)),
            timing("unknown", Precision::F32, None),
            timing("short_sums", Precision::F32, Some(4e-3)),
            timing("nothing", Precision::Bf16, Some(f64::NAN)),
        ];
        let text = complaints(&timings);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("  short_sums of 8 x 8 (small, f32): 4.0e-3, more than 5.0e-5\n"));
        assert!(text.contains("nothing of 8 x 8 (small, bf16): NaN"), "{text}");
        assert_eq!(complaints(&timings[..3]), "");
    }
}
