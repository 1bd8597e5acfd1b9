//! `kernels/cuda/adamw.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, bail};

use super::launch::{Launch, address, address_or_null, arguments};
use super::program::{Program, source};
use super::table::{CHUNK_THREADS, Table};
use super::upload::upload;
use crate::adamw::{Clip, Coefficients, Moments, Params, Step, Weights};

static PROGRAM: Program = source!("adamw");

/// `Step` of the source.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct StepArgument {
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    keep: f32,
    step_size: f32,
    inv_root_correction: f32,
    eps: f32,
}

// SAFETY: eight numbers of 32 bits, as the source has them.
unsafe impl DeviceRepr for StepArgument {}

/// Tensors that one launch moves.
struct Group<'a> {
    kernel: String,
    clip: Option<&'a Clip>,
    /// Weight decay is that of those which decay.
    params: Params,
    seed: u64,
    table: Table,
}

/// All `steps`, each with contiguous tensors of one GPU, in as few launches as there are kinds of them.
pub(crate) fn step_all(steps: &[Step]) -> Result<()> {
    let Some(first) = steps.first() else { return Ok(()) };
    let mut groups: Vec<Group> = Vec::new();
    for step in steps {
        let entry = entry(step)?;
        let (kernel, seed) = (kernel(step)?, seed(step));
        let fits = |group: &&mut Group| {
            let clip = group.clip.map(std::ptr::from_ref) == step.clip.map(std::ptr::from_ref);
            let same = group.kernel == kernel && group.seed == seed && clip;
            same && goes_with(group.params, step.params)
        };
        let group = match groups.iter_mut().find(fits) {
            Some(group) => group,
            None => {
                let table = Table::default();
                groups.push(Group { kernel, clip: step.clip, params: step.params, seed, table });
                groups.last_mut().expect("it was pushed")
            }
        };
        group.params.weight_decay = group.params.weight_decay.max(step.params.weight_decay);
        group.table.push(&entry, step.grad.elem_count());
    }
    let device = first.grad.device();
    for Group { kernel, clip, params, seed, table } in groups {
        let c = Coefficients::new(params);
        let [entries, places] = table.on(device)?;
        let grad_scale = match clip {
            Some(clip) => clip.scale.clone(),
            None => upload(&[c.grad_scale], 1, device)?,
        };
        let argument = StepArgument {
            beta1: c.beta1,
            rest1: c.rest1,
            beta2: c.beta2,
            rest2: c.rest2,
            keep: c.keep,
            step_size: c.step_size,
            inv_root_correction: c.inv_root_correction,
            eps: c.eps,
        };
        let grid = [table.num_places(), 1, 1];
        let launch = Launch {
            program: &PROGRAM,
            kernel,
            head_dim: None,
            grid,
            block: CHUNK_THREADS,
            shared: 0,
        };
        let arguments = arguments![
            address(&entries)?,
            address(&places)?,
            argument,
            address(&grad_scale)?,
            seed,
            params.step as u32,
        ];
        // SAFETY: the table has the places of whole tensors; what a variant does not use is null.
        unsafe { launch.run(device, &arguments) }?;
    }
    Ok(())
}

/// Whether one launch does both: what differs may be that one of them does not decay.
fn goes_with(a: Params, b: Params) -> bool {
    let decays =
        [a.weight_decay, b.weight_decay].contains(&0.0) || a.weight_decay == b.weight_decay;
    decays && Params { weight_decay: 0.0, ..a } == Params { weight_decay: 0.0, ..b }
}

fn seed(step: &Step) -> u64 {
    match step.weights {
        Weights::Stochastic { seed, .. } => seed,
        _ => 0,
    }
}

fn kernel(step: &Step) -> Result<String> {
    let weights = match step.weights {
        Weights::F32(_) => "f32",
        Weights::Master { .. } => "master",
        Weights::Stochastic { .. } => "stochastic",
    };
    let moments = match step.moments {
        Moments::F32 { .. } => "m32",
        Moments::Blockwise8 { .. } => "m8",
    };
    let grad = match step.grad.dtype() {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        other => bail!("adamw wants a gradient of f32 or bf16, not {other:?}"),
    };
    Ok(format!("adamw_{weights}_{moments}_{grad}"))
}

/// `Tensor` of the source.
fn entry(step: &Step) -> Result<Vec<u8>> {
    let (weight, param, number) = match step.weights {
        Weights::F32(weight) => (weight, None, 0),
        Weights::Master { master, param } => (master, Some(param), 0),
        Weights::Stochastic { param, tensor, .. } => (param, None, tensor as u32),
    };
    let [first, second, first_scales, second_scales] = match step.moments {
        Moments::F32 { first, second } => [Some(first), Some(second), None, None],
        Moments::Blockwise8 { first, first_scales, second, second_scales } => {
            [Some(first), Some(second), Some(first_scales), Some(second_scales)]
        }
    };
    let tensors =
        [Some(weight), param, Some(step.grad), first, second, first_scales, second_scales];
    if tensors.iter().flatten().any(|tensor| !tensor.is_contiguous()) {
        bail!("adamw of tensors that are not contiguous");
    }
    let mut entry = Vec::with_capacity(72);
    for tensor in tensors {
        entry.extend(address_or_null(tensor)?.to_ne_bytes());
    }
    entry.extend((step.grad.elem_count() as u64).to_ne_bytes());
    entry.extend(number.to_ne_bytes());
    entry.extend(u32::from(step.params.weight_decay != 0.0).to_ne_bytes());
    Ok(entry)
}
