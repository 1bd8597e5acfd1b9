//! The ops of a model, with the sizes that it gives them.
//!
//! Letters as in `chandler_kernels`: N tokens, E hidden, F feed-forward, H and K heads, D head
//! dimension, V vocabulary.

use candle_core::{DType, Device, Result as TensorResult, Tensor, bail};
use chandler_kernels::activation::Activation;
use chandler_kernels::decode_attention::{self, Place, Places};
use chandler_kernels::{
    activation, adamw, attention, embedding, gemv, linear, linear_cross_entropy, rms_norm, rope,
};
use chandler_model::ModelConfig;

use super::super::shape::Shape;
use super::super::{Precision, token_ids};
use super::{KernelsArgs, Timing, best_of, tensor};

/// Rows of the batches of a decode step.
const DECODED_ROWS: [usize; 2] = [1, 8];

/// Optimizer steps of f32 weights, of bf16 ones with masters, and of bf16 ones alone: with moments in
/// f32 and in 8 bits.
const STEPS: [[&str; 2]; 3] = [
    ["adamw", "adamw_8bit"],
    ["adamw_master", "adamw_master_8bit"],
    ["adamw_stochastic", "adamw_stochastic_8bit"],
];

/// An op at one size.
struct Case<'a> {
    op: &'static str,
    size: String,
    flops: f64,
    bytes: f64,
    /// On the CPU, in the types that the op gets.
    inputs: &'a [Tensor],
}

/// The ops of one model in one type.
pub(super) struct Bench<'a> {
    args: &'a KernelsArgs,
    shape: &'a Shape,
    precision: Precision,
    device: Device,
    timings: Vec<Timing>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        args: &'a KernelsArgs,
        shape: &'a Shape,
        precision: Precision,
        device: Device,
    ) -> Self {
        Self { args, shape, precision, device, timings: vec![] }
    }

    pub(super) fn into_timings(self) -> Vec<Timing> {
        self.timings
    }

    pub(super) fn all(&mut self, config: &ModelConfig) -> TensorResult<()> {
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
        self.rope(config)?;
        self.gated(f, config.activation)?;
        self.embedding(config.vocab_size, e)?;
        self.loss(config.vocab_size, e)?;
        self.decode(config)?;
        self.optimizer(f, e)
    }

    fn linear(&mut self, o: usize, i: usize) -> TensorResult<()> {
        if !self.wants(&["linear_forward", "linear_backward_input", "linear_backward_weight"]) {
            return Ok(());
        }
        let n = self.args.seq_len;
        let inputs = [self.tensor(&[n, i])?, self.tensor(&[o, i])?, self.tensor(&[n, o])?];
        let size = || format!("{n} x {i} x {o}");
        let flops = (2 * n * i * o) as f64;
        let (read, sums) = (n * i + o * i + n * o, 4 * o * i);
        let (bytes, of_weight) = (self.bytes(read), self.bytes(n * i + n * o) + sums as f64);
        let case = |op, bytes| Case { op, size: size(), flops, bytes, inputs: &inputs };
        self.time(&case("linear_forward", bytes), |t| {
            Ok(vec![linear::forward(&t[0], &t[1], None)?])
        })?;
        self.time(&case("linear_backward_input", bytes), |t| {
            Ok(vec![linear::backward_input(&t[1], &t[2])?])
        })?;
        self.time(&case("linear_backward_weight", of_weight), |t| {
            Ok(vec![linear::backward_weight(&t[0], &t[2])?])
        })
    }

    fn attention(&mut self, config: &ModelConfig) -> TensorResult<()> {
        let (n, d) = (self.args.seq_len, config.head_dim);
        let (h, k) = (config.num_attention_heads, config.num_key_value_heads);
        let [q, dy] = [self.tensor(&[n, h, d])?, self.tensor(&[n, h, d])?];
        let [keys, values] = [self.tensor(&[n, k, d])?, self.tensor(&[n, k, d])?];
        let inputs = [q, keys, values, dy];
        let params =
            attention::Params { scale: config.attention_scale, softcap: None, window: None };
        let documents = [0, n as u32];
        let size = || format!("{n} x {h}/{k} x {d}");
        let flops = (4 * h * d * (n * (n + 1) / 2)) as f64;
        let (read, back) = (2 * n * (h + k) * d, n * (3 * h + 4 * k) * d);
        let forward = Case {
            op: "attention_forward",
            size: size(),
            flops,
            bytes: self.bytes(read),
            inputs: &inputs,
        };
        self.time(&forward, |t| {
            Ok(vec![attention::forward(&t[0], &t[1], &t[2], &documents, params)?])
        })?;
        let (op, flops, bytes) = ("attention_backward", 2.0 * flops, self.bytes(back));
        self.time(&Case { op, size: size(), flops, bytes, inputs: &inputs }, |t| {
            Ok(attention::backward(&t[0], &t[1], &t[2], &documents, params, &t[3])?.into())
        })
    }

    fn norm(&mut self, e: usize, eps: f64) -> TensorResult<()> {
        let n = self.args.seq_len;
        let inputs = [self.tensor(&[n, e])?, self.tensor(&[e])?, self.tensor(&[n, e])?];
        let params = rms_norm::Params { eps, unit_offset: false };
        let case = |op, bytes| {
            let size = format!("{n} x {e}");
            Case { op, size, flops: 0.0, bytes, inputs: &inputs }
        };
        let bytes = [2, 4, 3].map(|tensors| self.bytes(tensors * n * e));
        self.time(&case("rms_norm_forward", bytes[0]), |t| {
            Ok(vec![rms_norm::forward(&t[0], &t[1], params)?])
        })?;
        self.time(&case("rms_norm_forward_add", bytes[1]), |t| {
            Ok(rms_norm::forward_add(&t[0], &t[2], &t[1], params)?.into())
        })?;
        self.time(&case("rms_norm_backward", bytes[2]), |t| {
            let (dx, dw) = rms_norm::backward(&t[0], &t[1], params, &t[2], true)?;
            Ok(std::iter::once(dx).chain(dw).collect())
        })
    }

    /// Of the queries, alone and after a norm of each head.
    fn rope(&mut self, config: &ModelConfig) -> TensorResult<()> {
        let (n, h, d) = (self.args.seq_len, config.num_attention_heads, config.head_dim);
        let angles = tensor(&[n, d / 2], DType::F32)?;
        let (x, weight) = (self.tensor(&[n, h, d])?, self.tensor(&[d])?);
        let inputs = [x, angles.cos()?, angles.sin()?, weight, self.tensor(&[n, h, d])?];
        let norm = rms_norm::Params { eps: config.rms_norm_eps, unit_offset: false };
        let case = |op, bytes| {
            let size = format!("{n} x {h} x {d}");
            Case { op, size, flops: 0.0, bytes, inputs: &inputs }
        };
        let bytes = [self.bytes(2 * n * h * d), self.bytes(3 * n * h * d)];
        self.time(&case("rope", bytes[0]), |t| Ok(vec![rope::forward(&t[0], &t[1], &t[2])?]))?;
        self.time(&case("rope_normed_forward", bytes[0]), |t| {
            Ok(vec![rope::forward_normed(&t[0], &t[3], norm, &t[1], &t[2])?])
        })?;
        self.time(&case("rope_normed_backward", bytes[1]), |t| {
            let (dx, dw) = rope::backward_normed(&t[0], &t[3], norm, &t[1], &t[2], &t[4], true)?;
            Ok(std::iter::once(dx).chain(dw).collect())
        })
    }

    fn gated(&mut self, f: usize, kind: Activation) -> TensorResult<()> {
        let n = self.args.seq_len;
        let inputs = [self.tensor(&[n, f])?, self.tensor(&[n, f])?, self.tensor(&[n, f])?];
        let case = |op, bytes| {
            let size = format!("{n} x {f}");
            Case { op, size, flops: 0.0, bytes, inputs: &inputs }
        };
        let bytes = [self.bytes(3 * n * f), self.bytes(5 * n * f)];
        self.time(&case("gated_forward", bytes[0]), |t| {
            Ok(vec![activation::forward(&t[0], &t[1], kind)?])
        })?;
        self.time(&case("gated_backward", bytes[1]), |t| {
            let (d_gate, d_up) = activation::backward(&t[0], &t[1], kind, &t[2])?;
            Ok(vec![d_gate, d_up])
        })
    }

    fn embedding(&mut self, v: usize, e: usize) -> TensorResult<()> {
        if !self.wants(&["embedding"]) {
            return Ok(());
        }
        let n = self.args.seq_len;
        let inputs = [self.tensor(&[v, e])?];
        let ids = Tensor::from_vec(token_ids(v, 0, n), n, &Device::Cpu)?;
        let (size, bytes) = (format!("{n} of {v} x {e}"), self.bytes(2 * n * e));
        self.time(&Case { op: "embedding", size, flops: 0.0, bytes, inputs: &inputs }, |t| {
            Ok(vec![embedding::forward(&t[0], &ids, None)?])
        })
    }

    fn loss(&mut self, v: usize, e: usize) -> TensorResult<()> {
        if !self.wants(&["loss_forward", "loss_with_gradients"]) {
            return Ok(());
        }
        let n = self.args.seq_len;
        let inputs = [self.tensor(&[n, e])?, self.tensor(&[v, e])?, tensor(&[v, e], DType::F32)?];
        let targets: Vec<i64> = token_ids(v, 1, n).into_iter().map(i64::from).collect();
        let flops = (2 * n * e * v) as f64;
        let read = self.bytes(n * e + v * e);
        let case = |op, flops, bytes| {
            let size = format!("{n} x {e} x {v}");
            Case { op, size, flops, bytes, inputs: &inputs }
        };
        self.time(&case("loss_forward", flops, read), |t| {
            let score = linear_cross_entropy::forward(&t[0], &t[1], &targets, None)?;
            Ok(vec![Tensor::new(score.loss_sum, &Device::Cpu)?])
        })?;
        let written = self.bytes(n * e) + (2 * 4 * v * e) as f64;
        self.time(&case("loss_with_gradients", 3.0 * flops, read + written), |t| {
            let (score, d_hidden) = linear_cross_entropy::forward_backward(
                &t[0],
                &t[1],
                &targets,
                None,
                1.0,
                Some(&t[2]),
            )?;
            Ok(vec![Tensor::new(score.loss_sum, &Device::Cpu)?, d_hidden, t[2].clone()])
        })
    }

    /// A step of generation: a product that reads the weight once, and attention over what a cache
    /// holds.
    fn decode(&mut self, config: &ModelConfig) -> TensorResult<()> {
        if !self.wants(&["decode_linear", "decode_attention"]) {
            return Ok(());
        }
        let (n, d) = (self.args.seq_len, config.head_dim);
        let (h, k) = (config.num_attention_heads, config.num_key_value_heads);
        let (e, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
        let params =
            attention::Params { scale: config.attention_scale, softcap: None, window: None };
        for rows in DECODED_ROWS {
            for o in [f, v] {
                let inputs = [self.tensor(&[rows, e])?, self.tensor(&[o, e])?];
                let (size, flops) = (format!("{rows} x {e} x {o}"), (2 * rows * e * o) as f64);
                let bytes = self.bytes(rows * e + o * e + rows * o);
                let case = Case { op: "decode_linear", size, flops, bytes, inputs: &inputs };
                self.time(&case, |t| {
                    gemv::forward(&t[0], &[gemv::Layer { weight: &t[1], bias: None }])
                })?;
            }
            let cache = [rows, k, n, d];
            let inputs = [self.tensor(&[rows, h, d])?, self.tensor(&cache)?, self.tensor(&cache)?];
            let places: Vec<Place> = (0..rows).map(|row| Place { row, len: n }).collect();
            let places =
                [&Device::Cpu, &self.device].map(|device| Places::new(places.clone(), device));
            let [on_cpu, there] = places;
            let (on_cpu, there) = (on_cpu?, there?);
            let (size, flops) =
                (format!("{rows} x {n} x {h}/{k} x {d}"), (4 * rows * n * h * d) as f64);
            let bytes = self.bytes(2 * rows * (h + n * k) * d);
            let case = Case { op: "decode_attention", size, flops, bytes, inputs: &inputs };
            self.time(&case, |t| {
                let places = if t[0].device().is_cpu() { &on_cpu } else { &there };
                Ok(vec![decode_attention::forward(&t[0], &t[1], &t[2], places, params)?])
            })?;
        }
        Ok(())
    }

    /// Weights as they are trained in that type: f32 ones; or masters of bf16, and bf16 alone.
    fn optimizer(&mut self, rows: usize, columns: usize) -> TensorResult<()> {
        let names = [&STEPS[0][..], &STEPS[1], &STEPS[2], &["sum_of_squares"]].concat();
        if !self.wants(&names) {
            return Ok(());
        }
        let wide = || tensor(&[rows, columns], DType::F32);
        let (master, grad) = (wide()?, wide()?);
        if self.precision.dtype() == DType::F32 {
            self.steps(STEPS[0], &[master], &grad)?;
        } else {
            let (param, narrow) = (master.to_dtype(DType::BF16)?, grad.to_dtype(DType::BF16)?);
            self.steps(STEPS[1], &[master, param.copy()?], &grad)?;
            self.steps(STEPS[2], &[param], &narrow)?;
        }
        let (count, size) = (rows * columns, format!("{rows} x {columns}"));
        let (op, bytes) = ("sum_of_squares", 4.0 * count as f64);
        self.time(&Case { op, size, flops: 0.0, bytes, inputs: &[grad] }, |t| {
            Ok(vec![Tensor::new(adamw::sum_of_squares(&t[0])?, &Device::Cpu)?])
        })
    }

    /// With moments in f32, and in 8 bits: f32 `weights`, f32 ones and their bf16 parameter, or bf16
    /// ones. There is no step in f64; on a GPU it is held against the CPU's.
    fn steps(
        &mut self,
        ops: [&'static str; 2],
        weights: &[Tensor],
        grad: &Tensor,
    ) -> TensorResult<()> {
        let (rows, columns) = grad.dims2()?;
        let count = rows * columns;
        // Weights and moments are read and written, a parameter beside its master only written.
        let of_weight = match weights {
            [_, _] => 10,
            [weight] => 2 * weight.dtype().size_in_bytes(),
            _ => bail!("weights of {} tensors", weights.len()),
        };
        let read = (of_weight + grad.dtype().size_in_bytes()) * count;
        for (op, is_8bit) in ops.into_iter().zip([false, true]) {
            if !op.contains(&self.args.only) {
                continue;
            }
            let of = |device: &Device| State::new(weights, grad, is_8bit, device);
            let state = of(&self.device)?;
            let bytes = (read + 2 * state.moments.bytes()) as f64;
            let off = (self.args.check && !self.device.is_cpu()).then(|| {
                let [found, expected] =
                    [of(&self.device)?.stepped()?, of(&Device::Cpu)?.stepped()?];
                apart(&found, &expected)
            });
            let off = off.transpose()?;
            let seconds = best_of(&self.device, || state.step())?;
            let size = format!("{rows} x {columns}");
            self.push(op, size, seconds, [0.0, bytes], off);
        }
        Ok(())
    }

    /// Whether there is anything to do for one of these ops.
    fn wants(&self, ops: &[&str]) -> bool {
        ops.iter().any(|op| op.contains(&self.args.only))
    }

    fn tensor(&self, shape: &[usize]) -> TensorResult<Tensor> {
        tensor(shape, self.precision.dtype())
    }

    fn bytes(&self, elements: usize) -> f64 {
        (elements * self.precision.dtype().size_in_bytes()) as f64
    }

    fn time(
        &mut self,
        case: &Case,
        run: impl Fn(&[Tensor]) -> TensorResult<Vec<Tensor>>,
    ) -> TensorResult<()> {
        if !case.op.contains(&self.args.only) {
            return Ok(());
        }
        // Copies, for an op may add to what it is given.
        let copies = |device: &Device| -> TensorResult<Vec<Tensor>> {
            case.inputs.iter().map(|x| x.copy()?.to_device(device)).collect()
        };
        let off = if self.args.check {
            let wide: TensorResult<Vec<Tensor>> =
                case.inputs.iter().map(|x| x.to_dtype(DType::F64)).collect();
            Some(apart(&run(&copies(&self.device)?)?, &run(&wide?)?)?)
        } else {
            None
        };
        let inputs = copies(&self.device)?;
        let seconds = best_of(&self.device, || run(&inputs))?;
        self.push(case.op, case.size.clone(), seconds, [case.flops, case.bytes], off);
        Ok(())
    }

    fn push(
        &mut self,
        op: &'static str,
        size: String,
        seconds: f64,
        [flops, bytes]: [f64; 2],
        off: Option<f64>,
    ) {
        let (shape, dtype) = (self.shape.name(), self.precision);
        self.timings.push(Timing { shape, dtype, op, size, seconds, flops, bytes, off });
    }
}

/// What an optimizer step moves.
struct State {
    weights: Vec<Tensor>,
    moments: adamw::Moments,
    grad: Tensor,
}

impl State {
    fn new(
        weights: &[Tensor],
        grad: &Tensor,
        is_8bit: bool,
        device: &Device,
    ) -> TensorResult<Self> {
        Ok(Self {
            weights: weights
                .iter()
                .map(|x| x.copy()?.to_device(device))
                .collect::<TensorResult<_>>()?,
            moments: if is_8bit {
                adamw::Moments::blockwise8_zeros(grad.elem_count(), device)?
            } else {
                adamw::Moments::f32_zeros(grad.shape(), device)?
            },
            grad: grad.to_device(device)?,
        })
    }

    fn step(&self) -> TensorResult<()> {
        let weights = match &self.weights[..] {
            [master, param] => adamw::Weights::Master { master, param },
            [weight] if weight.dtype() == DType::F32 => adamw::Weights::F32(weight),
            all => adamw::Weights::Stochastic { param: &all[0], seed: 0, tensor: 0 },
        };
        let params = adamw::Params {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: 1,
            grad_scale: 1.0,
        };
        adamw::step(weights, &self.moments, &self.grad, params)
    }

    /// Weights and moments after one step.
    fn stepped(self) -> TensorResult<Vec<Tensor>> {
        self.step()?;
        let (first, second) = self.moments.to_f32()?;
        let moments = [first, second].map(|moment| moment.flatten_all());
        self.weights.into_iter().map(Ok).chain(moments).collect()
    }
}

/// The largest difference of two elements, relative to the largest value of its tensor.
fn apart(found: &[Tensor], expected: &[Tensor]) -> TensorResult<f64> {
    let wide = |x: &Tensor| {
        x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()
    };
    let mut most = 0.0;
    for (found, expected) in found.iter().zip(expected) {
        let (found, expected) = (wide(found)?, wide(expected)?);
        if found.len() != expected.len() {
            bail!("{} elements beside {}", found.len(), expected.len());
        }
        let difference = largest(found.iter().zip(&expected).map(|(a, b)| a - b));
        most = largest([most, difference / largest(expected).max(f64::MIN_POSITIVE)]);
    }
    Ok(most)
}

/// The largest magnitude; what is not a number is above all.
fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    let larger = |most: f64, x: f64| if most.is_nan() || x.abs() <= most { most } else { x.abs() };
    values.into_iter().fold(0.0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_and_what_is_no_number_counts() -> TensorResult<()> {
        let of = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        let (one, two) = ([of(&[1.0, -4.0])?], [of(&[1.5, -4.0])?]);
        assert_eq!(apart(&one, &two)?, 0.125);
        let [[one], [two]] = [one, two];
        let both = [one.clone(), two];
        assert_eq!(apart(&[one.clone(), one.clone()], &both)?, 0.125);
        assert!(apart(&[of(&[f32::NAN, 1.0])?, one.clone()], &both)?.is_nan());
        assert!(apart(&[of(&[1.0])?], &both).is_err());
        Ok(())
    }
}
