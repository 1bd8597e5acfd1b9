//! AdamW (Loshchilov and Hutter 2019, algorithm 2), in place, as PyTorch computes it: decoupled
//! weight decay, bias-corrected moments, ε outside the root.
//!
//! A step is one pass over memory: weights, moments and gradient are read once and written once,
//! whatever they are stored as. [`Weights`] says what is trained, [`Moments`] holds the state.

mod bytes;
#[cfg(target_arch = "x86_64")]
mod bytes_avx512;
mod clip;
mod composed;
mod cpu;
mod moved;
mod random;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use half::bf16;

use crate::cpu::{self as slices, Real};
use crate::device::to_host;
use crate::memory;
use crate::profile::{self, Op};
use bytes::{Code, Codec, Plain};
pub use clip::{Clip, Halt};
use cpu::Blocks;
pub use moved::{Moved, moved_all};

/// Elements that share a scale.
const BLOCK: usize = 256;

/// The coefficients of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps including this one: 1 at the first.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

/// The tensors that a step moves, in place: every tensor that shares their storage sees the new
/// values. They are contiguous, and no two tensors of a step share storage.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// f32.
    F32(&'a Tensor),
    /// f32 weights that are moved, and the model's bf16 tensor, which becomes them rounded.
    Master {
        /// f32.
        master: &'a Tensor,
        /// bf16, of the same shape.
        param: &'a Tensor,
    },
    /// bf16 and nothing else. The new value is rounded up or down at random, with the chances that
    /// make its expectation the value itself, so that steps smaller than half a unit in the last
    /// place add up (Gupta et al. 2015, "Deep learning with limited numerical precision"). The bits
    /// depend on the seed, the tensor's number, the step and the element alone.
    Stochastic {
        /// bf16.
        param: &'a Tensor,
        /// Seed of the run.
        seed: u64,
        /// Number of the tensor in the model; its low 32 bits count, as do those of the step.
        tensor: u64,
    },
}

/// The moments of one tensor, updated in place by [`step`].
#[derive(Debug, Clone)]
pub enum Moments {
    /// 8 bytes an element.
    F32 {
        /// Mean of the gradient, f32, of the weight's shape.
        first: Tensor,
        /// Mean of its square, f32, of the weight's shape.
        second: Tensor,
    },
    /// A little more than 2 bytes an element: codes of 8 bits, and a scale for every 256 of them
    /// (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization").
    Blockwise8 {
        /// u8, one an element.
        first: Tensor,
        /// f32, one a block.
        first_scales: Tensor,
        /// u8, one an element.
        second: Tensor,
        /// f32, one a block.
        second_scales: Tensor,
    },
}

impl Moments {
    /// Before the first step of a weight of this shape: f32.
    pub fn f32_zeros(shape: impl Into<Shape>, device: &Device) -> Result<Self> {
        let first = memory::zeros(shape, DType::F32, device)?;
        let second = memory::zeros(first.shape(), DType::F32, device)?;
        Ok(Self::F32 { first, second })
    }

    /// Before the first step of a weight of so many elements: 8 bits.
    pub fn blockwise8_zeros(elements: usize, device: &Device) -> Result<Self> {
        let codes = || memory::zeros(elements, DType::U8, device);
        let scales = || memory::zeros(elements.div_ceil(BLOCK), DType::F32, device);
        Ok(Self::Blockwise8 {
            first: codes()?,
            first_scales: scales()?,
            second: codes()?,
            second_scales: scales()?,
        })
    }

    /// Bytes of all its tensors.
    pub fn bytes(&self) -> usize {
        self.tensors().iter().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }

    /// First and second moment in f32; those of 8 bits are flat, and on the CPU.
    pub fn to_f32(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::F32 { first, second } => Ok((first.clone(), second.clone())),
            Self::Blockwise8 { first, first_scales, second, second_scales } => Ok((
                decode(first, first_scales, Code::Signed)?,
                decode(second, second_scales, Code::Unsigned)?,
            )),
        }
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::F32 { first, second } => vec![first, second],
            Self::Blockwise8 { first, first_scales, second, second_scales } => {
                vec![first, first_scales, second, second_scales]
            }
        }
    }

    /// What is wrong with them for a weight of this shape.
    fn check(&self, weight: &Tensor) -> Result<()> {
        let elements = weight.elem_count();
        let fits = match self {
            Self::F32 { first, second } => {
                [first, second].iter().all(|t| t.dtype() == DType::F32 && t.dims() == weight.dims())
            }
            Self::Blockwise8 { first, first_scales, second, second_scales } => {
                let is = |t: &Tensor, dtype, len| t.dtype() == dtype && t.elem_count() == len;
                let scales = elements.div_ceil(BLOCK);
                [first, second].iter().all(|t| is(t, DType::U8, elements))
                    && [first_scales, second_scales].iter().all(|t| is(t, DType::F32, scales))
            }
        };
        if !fits {
            bail!("adamw of a weight {:?} with moments {:?}", weight.dims(), self.tensors());
        }
        Ok(())
    }
}

fn decode(codes: &Tensor, scales: &Tensor, code: Code) -> Result<Tensor> {
    let scales = to_host(scales)?.flatten_all()?.to_vec1::<f32>()?;
    let codes = to_host(codes)?.flatten_all()?.to_vec1::<u8>()?;
    let mut all = Vec::with_capacity(codes.len());
    for (codes, scale) in codes.chunks(BLOCK).zip(scales) {
        let mut values = [0.0; BLOCK];
        Plain.decode(code, codes, scale, &mut values);
        all.extend_from_slice(&values[..codes.len()]);
    }
    slices::tensor(all, codes.len())
}

/// What one tensor's step needs.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What is moved.
    pub weights: Weights<'a>,
    /// Its state.
    pub moments: &'a Moments,
    /// Along what: f32 or bf16, of the weight's shape.
    pub grad: &'a Tensor,
    /// How.
    pub params: Params,
    /// Clips the gradient, where a GPU works out by how much: then in place of
    /// [`Params::grad_scale`].
    pub clip: Option<&'a Clip>,
}

impl Step<'_> {
    fn check(&self) -> Result<()> {
        self.weights.check()?;
        let weight = self.weights.tensor();
        self.moments.check(weight)?;
        if self.clip.is_some() && !weight.device().is_cuda() {
            bail!("adamw of a weight on {:?}, clipped on a GPU", weight.device());
        }
        if self.grad.dims() != weight.dims() {
            bail!("adamw of a weight {:?} along {:?}", weight.dims(), self.grad.dims());
        }
        Ok(())
    }
}

/// The steps of many tensors: on a GPU in one launch for all of a kind, else one after the other.
pub fn step_all(steps: &[Step]) -> Result<()> {
    #[cfg(feature = "cuda")]
    if !steps.is_empty() && steps.iter().all(|step| step.weights.tensor().device().is_cuda()) {
        let _timer = profile::over(Op::Optimizer, 0, &[]);
        steps.iter().try_for_each(Step::check)?;
        return crate::cuda::adamw::step_all(steps);
    }
    steps.iter().try_for_each(step_one)
}

/// One step of `weights` and `moments` along `grad`, f32 or bf16 of the weight's shape.
///
/// Devices other than the CPU and NVIDIA's GPUs have f32 moments and no stochastic rounding.
pub fn step(weights: Weights, moments: &Moments, grad: &Tensor, params: Params) -> Result<()> {
    step_one(&Step { weights, moments, grad, params, clip: None })
}

fn step_one(step: &Step) -> Result<()> {
    let Step { weights, moments, grad, params, .. } = *step;
    let _timer =
        profile::over(Op::Optimizer, 0, &[weights.tensor(), grad]).moving(2 * moments.bytes());
    step.check()?;
    match weights.tensor().device() {
        candle_core::Device::Cpu => {}
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(_) => return crate::cuda::adamw::step_all(&[*step]),
        _ => return step_composed(weights, moments, grad, params),
    }
    let coefficients = Coefficients::new(params);
    match grad.dtype() {
        DType::F32 => slices::with([grad], |[grad]: [&[f32]; 1]| {
            with_weights(weights, moments, grad, params.step, coefficients)
        }),
        DType::BF16 => slices::with([grad], |[grad]: [&[bf16]; 1]| {
            with_weights(weights, moments, grad, params.step, coefficients)
        }),
        other => bail!("adamw wants a gradient of f32 or bf16, not {other:?}"),
    }
}

impl<'a> Weights<'a> {
    /// The tensor that is read and moved.
    pub(crate) fn tensor(self) -> &'a Tensor {
        match self {
            Weights::F32(weight) => weight,
            Weights::Master { master, .. } => master,
            Weights::Stochastic { param, .. } => param,
        }
    }

    fn check(self) -> Result<()> {
        let fits = match self {
            Weights::F32(weight) => weight.dtype() == DType::F32,
            Weights::Master { master, param } => {
                let dtypes = (master.dtype(), param.dtype());
                dtypes == (DType::F32, DType::BF16) && master.dims() == param.dims()
            }
            Weights::Stochastic { param, .. } => param.dtype() == DType::BF16,
        };
        if !fits {
            bail!("adamw of {self:?}");
        }
        Ok(())
    }
}

fn with_weights<G: Real>(
    weights: Weights,
    moments: &Moments,
    grad: &[G],
    step: u64,
    c: Coefficients,
) -> Result<()> {
    match weights {
        Weights::F32(weight) => {
            slices::update(weight, |weight: &mut [f32]| with_moments(weight, moments, grad, c))
        }
        Weights::Master { master, param } => slices::update(master, |master| {
            slices::update(param, |param| {
                with_moments(cpu::Master { master, param }, moments, grad, c)
            })
        }),
        Weights::Stochastic { param, seed, tensor } => slices::update(param, |param| {
            let random = random::Random::new(seed, tensor, step);
            with_moments(cpu::Stochastic { param, random, before: 0 }, moments, grad, c)
        }),
    }
}

fn with_moments<G: Real>(
    weights: impl Blocks,
    moments: &Moments,
    grad: &[G],
    c: Coefficients,
) -> Result<()> {
    match moments {
        Moments::F32 { first, second } => slices::update(first, |first: &mut [f32]| {
            slices::update(second, |second: &mut [f32]| {
                cpu::step(weights, first, second, grad, c);
                Ok(())
            })
        }),
        Moments::Blockwise8 { first, first_scales, second, second_scales } => {
            let moments = [(first, first_scales), (second, second_scales)];
            #[cfg(target_arch = "x86_64")]
            if let Some(token) = crate::simd::avx512() {
                let codec = bytes_avx512::Avx512(token);
                return with_codec(codec, weights, moments, grad, c);
            }
            with_codec(Plain, weights, moments, grad, c)
        }
    }
}

fn with_codec<C: Codec, G: Real>(
    codec: C,
    weights: impl Blocks,
    [first, second]: [(&Tensor, &Tensor); 2],
    grad: &[G],
    c: Coefficients,
) -> Result<()> {
    with_bytes(codec, first, Code::Signed, |first| {
        with_bytes(codec, second, Code::Unsigned, |second| {
            cpu::step(weights, first, second, grad, c);
            Ok(())
        })
    })
}

fn with_bytes<C: Codec>(
    codec: C,
    (codes, scales): (&Tensor, &Tensor),
    code: Code,
    f: impl FnOnce(cpu::Bytes<C>) -> Result<()>,
) -> Result<()> {
    slices::update(codes, |codes| {
        slices::update(scales, |scales| f(cpu::Bytes { codes, scales, code, codec }))
    })
}

fn step_composed(weights: Weights, moments: &Moments, grad: &Tensor, params: Params) -> Result<()> {
    match (weights, moments) {
        (Weights::F32(weight), Moments::F32 { first, second }) => {
            composed::step(weight, first, second, grad, params)
        }
        (Weights::Master { master, param }, Moments::F32 { first, second }) => {
            composed::step(master, first, second, grad, params)?;
            param.slice_set(&master.to_dtype(param.dtype())?, 0, 0)
        }
        _ => bail!("adamw with 8-bit moments or stochastic rounding has no kernel on this device"),
    }
}

/// What a step does to each element, in f32:
/// `m ← β₁·m + (1 − β₁)·g`, `v ← β₂·v + (1 − β₂)·g²`,
/// `p ← (1 − lr·λ)·p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    pub(crate) grad_scale: f32,
    pub(crate) keep: f32,
    pub(crate) step_size: f32,
    pub(crate) inv_root_correction: f32,
    pub(crate) eps: f32,
}

impl Coefficients {
    pub(crate) fn new(params: Params) -> Self {
        let Params { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = params;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            beta1: beta1 as f32,
            rest1: 1.0 - beta1 as f32,
            beta2: beta2 as f32,
            rest2: 1.0 - beta2 as f32,
            grad_scale: grad_scale as f32,
            keep: (1.0 - lr * weight_decay) as f32,
            step_size: (lr / correction(beta1)) as f32,
            inv_root_correction: (1.0 / correction(beta2).sqrt()) as f32,
            eps: eps as f32,
        }
    }
}

/// [`sum_of_squares`] of all of `tensors`, added in their order; on a GPU it is waited for once.
pub fn sum_of_all_squares(tensors: &[&Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if tensors.iter().all(|tensor| crate::cuda::on_gpu(&[tensor]) && tensor.is_contiguous()) {
        let _timer = profile::over(Op::Optimizer, 0, tensors);
        return crate::cuda::norm::sum_of_squares(tensors);
    }
    tensors.iter().try_fold(0.0, |sum, tensor| Ok(sum + sum_of_squares(tensor)?))
}

/// [`sum_of_squares`] of each of `tensors`; a GPU is waited for once.
pub fn squares_of_each(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if tensors.iter().all(|tensor| crate::cuda::on_gpu(&[tensor]) && tensor.is_contiguous()) {
        let _timer = profile::over(Op::Optimizer, 0, tensors);
        return crate::cuda::norm::squares_of_each(tensors);
    }
    tensors.iter().map(|tensor| sum_of_squares(tensor)).collect()
}

/// Sum of the squares of `tensor` (f32 or bf16; other dtypes and devices by candle's ops), in f64
/// and in an order that no thread count changes.
pub fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let _timer = profile::over(Op::Optimizer, 0, &[tensor]);
    match slices::fast_dtype(&[tensor]) {
        Some(DType::BF16) => slices::with([tensor], |[x]: [&[bf16]; 1]| Ok(cpu::sum_of_squares(x))),
        Some(_) => slices::with([tensor], |[x]: [&[f32]; 1]| Ok(cpu::sum_of_squares(x))),
        #[cfg(feature = "cuda")]
        None if crate::cuda::on_gpu(&[tensor]) => {
            crate::cuda::norm::sum_of_squares(&[&tensor.contiguous()?])
        }
        None => tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>(),
    }
}
