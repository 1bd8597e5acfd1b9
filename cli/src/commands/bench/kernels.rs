//! `chandler bench kernels`: each op alone.
//!
//! Letters as in `chandler_kernels`: N tokens, E hidden, F feed-forward, H and K heads, D head
//! dimension, V vocabulary.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use chandler_kernels::activation::Activation;
use chandler_kernels::{
    activation, adamw, attention, embedding, linear, linear_cross_entropy, rms_norm, rope,
};
use chandler_model::ModelConfig;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::report::{print_line, rate};
use super::shape::Shape;
use super::{Precision, token_ids};
use crate::engine::EngineError;
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
    /// Tokens of the micro-batch, which is one document
    #[arg(long, value_name = "T", default_value_t = 512, value_parser = super::at_least_one)]
    seq_len: usize,
    /// Only ops whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
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
}

pub(super) fn kernels(args: &KernelsArgs) -> Result<Exit, Failure> {
    let shapes = match &args.shape {
        Some(shape) => vec![shape.clone()],
        None => vec![Shape::Small, Shape::Qwen3Of600M],
    };
    let precisions = args.dtype.map_or(vec![Precision::F32, Precision::Bf16], |one| vec![one]);
    let mut timings = Vec::new();
    for shape in &shapes {
        let config = shape.config()?;
        for precision in &precisions {
            let mut bench = Bench { args, shape, precision: *precision, timings: vec![] };
            bench.all(&config).map_err(|error| EngineError::Model(error.into()))?;
            output::print(&output::table(&rows(&bench.timings)))?;
            output::print("\n")?;
            timings.extend(bench.timings);
        }
    }
    if args.json {
        let cpu = host::cpu();
        print_line(&json!({
            "command": "kernels",
            "seq_len": args.seq_len,
            "timings": timings,
            "cpu": cpu.model,
            "threads": cpu.threads,
            "version": env!("CARGO_PKG_VERSION"),
        }))?;
    }
    Ok(Exit::Ok)
}

fn rows(timings: &[Timing]) -> Vec<Vec<String>> {
    let heads = ["shape", "dtype", "op", "size", "ms", "GFLOP/s", "GB/s"];
    let row = |timing: &Timing| {
        vec![
            timing.shape.clone(),
            timing.dtype.name().to_owned(),
            timing.op.to_owned(),
            timing.size.clone(),
            format!("{:.3}", 1e3 * timing.seconds),
            rate(timing.flops, timing.seconds),
            rate(timing.bytes, timing.seconds),
        ]
    };
    std::iter::once(heads.map(str::to_owned).to_vec()).chain(timings.iter().map(row)).collect()
}

/// The ops of one model in one type.
struct Bench<'a> {
    args: &'a KernelsArgs,
    shape: &'a Shape,
    precision: Precision,
    timings: Vec<Timing>,
}

impl Bench<'_> {
    fn all(&mut self, config: &ModelConfig) -> TensorResult<()> {
        let (e, f) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let mut products = vec![(q, e), (kv, e), (e, q), (f, e), (e, f), (config.vocab_size, e)];
        products.sort_unstable();
        products.dedup();
        for (outputs, inputs) in products {
            self.linear(outputs, inputs)?;
        }
        self.attention(config)?;
        self.norm(e, config.rms_norm_eps)?;
        self.rope(config.num_attention_heads, config.head_dim)?;
        self.gated(f, config.activation)?;
        self.embedding(config.vocab_size, e)?;
        self.loss(config.vocab_size, e)?;
        self.optimizer(f, e)
    }

    fn linear(&mut self, o: usize, i: usize) -> TensorResult<()> {
        if !self.wants("linear") {
            return Ok(());
        }
        let n = self.args.seq_len;
        let (x, w, dy) = (self.tensor(&[n, i])?, self.tensor(&[o, i])?, self.tensor(&[n, o])?);
        let size = format!("{n} x {i} x {o}");
        let flops = (2 * n * i * o) as f64;
        let (read, sums) = (n * i + o * i + n * o, 4 * o * i);
        let (bytes, of_weight) = (self.bytes(read), self.bytes(n * i + n * o) + sums as f64);
        self.time("linear_forward", &size, flops, bytes, || linear::forward(&x, &w, None))?;
        self.time("linear_backward_input", &size, flops, bytes, || {
            linear::backward_input(&w, &dy)
        })?;
        self.time("linear_backward_weight", &size, flops, of_weight, || {
            linear::backward_weight(&x, &dy)
        })
    }

    fn attention(&mut self, config: &ModelConfig) -> TensorResult<()> {
        let (n, d) = (self.args.seq_len, config.head_dim);
        let (h, k) = (config.num_attention_heads, config.num_key_value_heads);
        let (q, dy) = (self.tensor(&[n, h, d])?, self.tensor(&[n, h, d])?);
        let (keys, values) = (self.tensor(&[n, k, d])?, self.tensor(&[n, k, d])?);
        let params =
            attention::Params { scale: config.attention_scale, softcap: None, window: None };
        let documents = [0, n as u32];
        let size = format!("{n} x {h}/{k} x {d}");
        let flops = (4 * h * d * (n * (n + 1) / 2)) as f64;
        let (read, back) = (2 * n * (h + k) * d, n * (3 * h + 4 * k) * d);
        self.time("attention_forward", &size, flops, self.bytes(read), || {
            attention::forward(&q, &keys, &values, &documents, params)
        })?;
        self.time("attention_backward", &size, 2.0 * flops, self.bytes(back), || {
            attention::backward(&q, &keys, &values, &documents, params, &dy)
        })
    }

    fn norm(&mut self, e: usize, eps: f64) -> TensorResult<()> {
        let n = self.args.seq_len;
        let (x, weight, dy) = (self.tensor(&[n, e])?, self.tensor(&[e])?, self.tensor(&[n, e])?);
        let params = rms_norm::Params { eps, unit_offset: false };
        let size = format!("{n} x {e}");
        self.time("rms_norm_forward", &size, 0.0, self.bytes(2 * n * e), || {
            rms_norm::forward(&x, &weight, params)
        })?;
        self.time("rms_norm_backward", &size, 0.0, self.bytes(3 * n * e), || {
            rms_norm::backward(&x, &weight, params, &dy, true)
        })
    }

    fn rope(&mut self, h: usize, d: usize) -> TensorResult<()> {
        let n = self.args.seq_len;
        let x = self.tensor(&[n, h, d])?;
        let angles = tensor(&[n, d / 2], DType::F32)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        self.time("rope", &format!("{n} x {h} x {d}"), 0.0, self.bytes(2 * n * h * d), || {
            rope::forward(&x, &cos, &sin)
        })
    }

    fn gated(&mut self, f: usize, kind: Activation) -> TensorResult<()> {
        let n = self.args.seq_len;
        let (gate, up, dy) = (self.tensor(&[n, f])?, self.tensor(&[n, f])?, self.tensor(&[n, f])?);
        let size = format!("{n} x {f}");
        self.time("gated_forward", &size, 0.0, self.bytes(3 * n * f), || {
            activation::forward(&gate, &up, kind)
        })?;
        self.time("gated_backward", &size, 0.0, self.bytes(5 * n * f), || {
            activation::backward(&gate, &up, kind, &dy)
        })
    }

    fn embedding(&mut self, v: usize, e: usize) -> TensorResult<()> {
        let n = self.args.seq_len;
        let table = self.tensor(&[v, e])?;
        let ids = Tensor::from_vec(token_ids(v, 0, n), n, &Device::Cpu)?;
        self.time("embedding", &format!("{n} of {v} x {e}"), 0.0, self.bytes(2 * n * e), || {
            embedding::forward(&table, &ids, None)
        })
    }

    fn loss(&mut self, v: usize, e: usize) -> TensorResult<()> {
        if !self.wants("loss") {
            return Ok(());
        }
        let n = self.args.seq_len;
        let (hidden, head) = (self.tensor(&[n, e])?, self.tensor(&[v, e])?);
        let targets: Vec<i64> = token_ids(v, 1, n).into_iter().map(i64::from).collect();
        let size = format!("{n} x {e} x {v}");
        let flops = (2 * n * e * v) as f64;
        let read = self.bytes(n * e + v * e);
        self.time("loss_forward", &size, flops, read, || {
            linear_cross_entropy::forward(&hidden, &head, &targets, None)
        })?;
        let d_head = Tensor::zeros((v, e), DType::F32, &Device::Cpu)?;
        let written = self.bytes(n * e) + (2 * 4 * v * e) as f64;
        self.time("loss_with_gradients", &size, 3.0 * flops, read + written, || {
            linear_cross_entropy::forward_backward(
                &hidden,
                &head,
                &targets,
                None,
                1.0,
                Some(&d_head),
            )
        })
    }

    /// Weights as they are trained in that type: f32 ones; or masters of bf16, and bf16 alone.
    fn optimizer(&mut self, rows: usize, columns: usize) -> TensorResult<()> {
        if !self.wants("adamw") && !self.wants("sum_of_squares") {
            return Ok(());
        }
        let wide = || tensor(&[rows, columns], DType::F32);
        let (master, grad) = (wide()?, wide()?);
        if self.precision.dtype() == DType::F32 {
            self.steps(["adamw", "adamw_8bit"], adamw::Weights::F32(&master), &grad)?;
        } else {
            let (param, narrow) = (master.to_dtype(DType::BF16)?, grad.to_dtype(DType::BF16)?);
            let masters = adamw::Weights::Master { master: &master, param: &param };
            self.steps(["adamw_master", "adamw_master_8bit"], masters, &grad)?;
            let alone = adamw::Weights::Stochastic { param: &param, seed: 0, tensor: 0 };
            self.steps(["adamw_stochastic", "adamw_stochastic_8bit"], alone, &narrow)?;
        }
        let (count, size) = (rows * columns, format!("{rows} x {columns}"));
        self.time("sum_of_squares", &size, 0.0, 4.0 * count as f64, || adamw::sum_of_squares(&grad))
    }

    /// With moments in f32, and in 8 bits.
    fn steps(
        &mut self,
        ops: [&'static str; 2],
        weights: adamw::Weights,
        grad: &Tensor,
    ) -> TensorResult<()> {
        let (rows, columns) = grad.dims2()?;
        let count = rows * columns;
        let params = adamw::Params {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 1,
            grad_scale: 1.0,
        };
        // Weights and moments are read and written, a parameter beside its master only written.
        let of_weights = match weights {
            adamw::Weights::F32(_) => 8,
            adamw::Weights::Master { .. } => 10,
            adamw::Weights::Stochastic { .. } => 4,
        } * count;
        let read = of_weights + count * grad.dtype().size_in_bytes();
        let moments = [
            adamw::Moments::f32_zeros((rows, columns), &Device::Cpu)?,
            adamw::Moments::blockwise8_zeros(count, &Device::Cpu)?,
        ];
        for (op, moments) in ops.into_iter().zip(&moments) {
            let bytes = (read + 2 * moments.bytes()) as f64;
            self.time(op, &format!("{rows} x {columns}"), 0.0, bytes, || {
                adamw::step(weights, moments, grad, params)
            })?;
        }
        Ok(())
    }

    fn wants(&self, op: &str) -> bool {
        op.contains(&self.args.only) || self.args.only.starts_with(op)
    }

    fn tensor(&self, shape: &[usize]) -> TensorResult<Tensor> {
        tensor(shape, self.precision.dtype())
    }

    fn bytes(&self, elements: usize) -> f64 {
        (elements * self.precision.dtype().size_in_bytes()) as f64
    }

    fn time<T>(
        &mut self,
        op: &'static str,
        size: &str,
        flops: f64,
        bytes: f64,
        run: impl FnMut() -> TensorResult<T>,
    ) -> TensorResult<()> {
        if op.contains(&self.args.only) {
            let (shape, size) = (self.shape.name(), size.to_owned());
            let (dtype, seconds) = (self.precision, best_of(run)?);
            self.timings.push(Timing { shape, dtype, op, size, seconds, flops, bytes });
        }
        Ok(())
    }
}

/// The shortest of several runs, in seconds: at least 3 and, where they are short, 200 ms of them.
fn best_of<T>(mut run: impl FnMut() -> TensorResult<T>) -> TensorResult<f64> {
    const LEAST_RUNS: usize = 3;
    const LEAST_S: f64 = 0.2;
    black_box(run()?);
    let (begun, mut best, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < LEAST_RUNS || begun.elapsed().as_secs_f64() < LEAST_S {
        let started = Instant::now();
        black_box(run()?);
        best = best.min(started.elapsed().as_secs_f64());
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
            let seconds = best_of(|| {
                let y = linear::forward(&x, &weight, None)?;
                device.synchronize()?;
                Ok(y)
            })?;
            peak = peak.max((2 * n * i * o) as f64 / seconds);
        }
        Ok(peak)
    };
    measure().map_err(|error: candle_core::Error| EngineError::Model(error.into()).into())
}
