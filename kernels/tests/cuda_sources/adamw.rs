//! Every bit of weights and moments is the CPU's.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::adamw::{Moments, Params, Weights, step};

use crate::buffer::Buffer;
use crate::compare::{DTYPES, random, same, suffix};
use crate::emulator::{Launch, Program, program};

const PARAMS: Params = Params {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 0.5,
};
const SEED: u64 = 0x1234_5678_9abc_def0;
const CHUNK: usize = 8192;

/// Tensor and chunk of each block that works on tensors of so many elements.
pub(crate) fn places(elements: &[usize]) -> Vec<[u32; 2]> {
    let of = |(tensor, elements): (u32, &usize)| {
        (0..elements.div_ceil(CHUNK) as u32).map(move |chunk| [tensor, chunk])
    };
    (0..).zip(elements).flat_map(of).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    F32,
    Master,
    Stochastic,
}

/// One tensor: what the CPU moves, and what the kernel moves.
struct Trained {
    weight: Tensor,
    param: Tensor,
    grad: Tensor,
    moments: Moments,
    number: u64,
    decays: bool,
    buffers: Buffers,
}

struct Buffers {
    weight: Buffer,
    param: Buffer,
    grad: Buffer,
    first: Buffer,
    second: Buffer,
    scales: Option<[Buffer; 2]>,
}

impl Buffers {
    fn tensor_of_table(&self, elements: usize, number: u64, decays: bool) -> [u64; 9] {
        let scales = self.scales.as_ref().map(|scales| scales.each_ref().map(Buffer::address));
        let [first_scales, second_scales] = scales.unwrap_or_default();
        [
            self.weight.address(),
            self.param.address(),
            self.grad.address(),
            self.first.address(),
            self.second.address(),
            first_scales,
            second_scales,
            elements as u64,
            number | u64::from(decays) << 32,
        ]
    }

    fn all(&self) -> impl Iterator<Item = &Buffer> {
        let own = [&self.weight, &self.param, &self.grad, &self.first, &self.second];
        own.into_iter().chain(self.scales.iter().flatten())
    }
}

impl Trained {
    fn new(elements: usize, kind: Kind, bytes: bool, grad: DType, index: usize) -> Result<Self> {
        let [weight, gradient] =
            random(&[&[elements], &[elements]], DType::F32)?.try_into().expect("two");
        let stored = if kind == Kind::Stochastic { DType::BF16 } else { DType::F32 };
        let weight = weight.to_dtype(stored)?.copy()?;
        let param = weight.to_dtype(DType::BF16)?.copy()?;
        // Of every size, and one that is zero.
        let grad = (gradient.powf(3.0)? * 10f64.powi(-(index as i32)))?.to_dtype(grad)?;
        let moments = if bytes {
            Moments::blockwise8_zeros(elements, &Device::Cpu)?
        } else {
            Moments::f32_zeros(elements, &Device::Cpu)?
        };
        let zeros = |bytes: usize| Buffer::of(&vec![0u8; bytes]);
        let moment = if bytes { elements } else { 4 * elements };
        let buffers = Buffers {
            weight: Buffer::of_tensor(&weight)?,
            param: Buffer::of_tensor(&param)?,
            grad: Buffer::of_tensor(&grad)?,
            first: zeros(moment),
            second: zeros(moment),
            scales: bytes.then(|| [(); 2].map(|()| zeros(4 * elements.div_ceil(256)))),
        };
        let number = 7 + 3 * index as u64;
        Ok(Self { weight, param, grad, moments, number, decays: index.is_multiple_of(2), buffers })
    }

    fn step_on_the_cpu(&self, kind: Kind, params: Params) -> Result<()> {
        let Self { weight, param, number, .. } = self;
        let weights = match kind {
            Kind::F32 => Weights::F32(weight),
            Kind::Master => Weights::Master { master: weight, param },
            Kind::Stochastic => Weights::Stochastic { param: weight, seed: SEED, tensor: *number },
        };
        let weight_decay = if self.decays { params.weight_decay } else { 0.0 };
        step(weights, &self.moments, &self.grad, Params { weight_decay, ..params })
    }

    fn check(&self) -> Result<()> {
        let Self { weight, param, buffers, .. } = self;
        same(&buffers.weight.tensor(weight.dims(), weight.dtype())?, weight)?;
        same(&buffers.param.tensor(param.dims(), DType::BF16)?, param)?;
        let same_moment = |buffer: &Buffer, moment: &Tensor| {
            same(&buffer.tensor(moment.dims(), moment.dtype())?, moment)
        };
        match (&self.moments, &buffers.scales) {
            (Moments::F32 { first, second }, None) => {
                same_moment(&buffers.first, first)?;
                same_moment(&buffers.second, second)
            }
            (
                Moments::Blockwise8 { first, first_scales, second, second_scales },
                Some([first_buffer, second_buffer]),
            ) => {
                for (buffer, moment) in [(&buffers.first, first), (&buffers.second, second)] {
                    let got = buffer.values::<u8>();
                    assert!(got == moment.to_vec1::<u8>()?, "other codes");
                }
                same_moment(first_buffer, first_scales)?;
                same_moment(second_buffer, second_scales)
            }
            _ => unreachable!("scales go with codes"),
        }
    }
}

/// As the crate has them.
fn coefficients(params: Params) -> [f32; 8] {
    let correction = |beta: f64| 1.0 - beta.powf(params.step as f64);
    [
        params.beta1 as f32,
        1.0 - params.beta1 as f32,
        params.beta2 as f32,
        1.0 - params.beta2 as f32,
        (1.0 - params.lr * params.weight_decay) as f32,
        (params.lr / correction(params.beta1)) as f32,
        (1.0 / correction(params.beta2).sqrt()) as f32,
        params.eps as f32,
    ]
}

fn launch(program: &Program, kernel: &str, tensors: &[Trained], params: Params) {
    let elements: Vec<usize> = tensors.iter().map(|tensor| tensor.weight.elem_count()).collect();
    let row = |(tensor, elements): (&Trained, &usize)| {
        tensor.buffers.tensor_of_table(*elements, tensor.number, tensor.decays)
    };
    let table: Vec<[u64; 9]> = tensors.iter().zip(&elements).map(row).collect();
    let places = places(&elements);
    let (table, list) = (Buffer::of(&table), Buffer::of(&places));
    let grad_scale = Buffer::of(&[params.grad_scale as f32]);
    let launch = program.launch(kernel, [places.len(), 1, 1], 256);
    let launch = launch
        .buffer(&table)
        .buffer(&list)
        .value(coefficients(params))
        .buffer(&grad_scale)
        .value(SEED)
        .value(params.step as u32);
    let reached = tensors.iter().flat_map(|tensor| tensor.buffers.all());
    reached.fold(launch, Launch::reaches).run();
}

fn agrees(sizes: &[usize], kind: Kind, bytes: bool, grad: DType) -> Result<()> {
    let Some(program) = program("adamw") else { return Ok(()) };
    let tensor =
        |(index, elements): (usize, &usize)| Trained::new(*elements, kind, bytes, grad, index);
    let tensors: Vec<Trained> = sizes.iter().enumerate().map(tensor).collect::<Result<_>>()?;
    let weights = format!("{kind:?}").to_lowercase();
    let moments = if bytes { "m8" } else { "m32" };
    let kernel = format!("adamw_{weights}_{moments}_{}", suffix(grad));
    for step in 1..=3 {
        let params = Params { step, ..PARAMS };
        launch(&program, &kernel, &tensors, params);
        for tensor in &tensors {
            tensor.step_on_the_cpu(kind, params)?;
            tensor.check()?;
        }
    }
    Ok(())
}

#[test]
fn every_variant_gives_the_bits_of_the_cpu() -> Result<()> {
    for kind in [Kind::F32, Kind::Master, Kind::Stochastic] {
        for bytes in [false, true] {
            for grad in DTYPES {
                agrees(&[1, 255, 256, 300, 8192, 8192 + 777, 17_000], kind, bytes, grad)?;
            }
        }
    }
    Ok(())
}

/// Zeros stay zero, and what is not a number stays that.
#[test]
fn moments_of_nothing_and_of_what_is_not_a_number() -> Result<()> {
    let Some(program) = program("adamw") else { return Ok(()) };
    for (value, bytes) in [(0.0, true), (1e-30, true), (f64::NAN, true), (f64::NAN, false)] {
        let mut tensor = Trained::new(600, Kind::F32, bytes, DType::F32, 0)?;
        tensor.grad = (tensor.grad.zeros_like()? + value)?;
        tensor.buffers.grad = Buffer::of_tensor(&tensor.grad)?;
        let kernel = if bytes { "adamw_f32_m8_f32" } else { "adamw_f32_m32_f32" };
        launch(&program, kernel, std::slice::from_ref(&tensor), PARAMS);
        tensor.step_on_the_cpu(Kind::F32, PARAMS)?;
        if value.is_nan() {
            assert!(tensor.buffers.weight.values::<f32>().iter().all(|x| x.is_nan()));
        } else {
            tensor.check()?;
        }
    }
    Ok(())
}
