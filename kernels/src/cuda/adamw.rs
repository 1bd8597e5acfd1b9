//! `kernels/cuda/adamw.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, bail};

use super::launch::{Launch, address, address_or_null, arguments, empty, suffix};
use super::norm::by_tensor;
use super::program::{Program, source};
use super::table::{CHUNK_THREADS, Table};
use super::upload::upload;
use crate::adamw::{Clip, Coefficients, Moments, Moved, Params, Step, Weights};

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

/// Tensors that one launch goes through.
struct Group<'a> {
    kernel: String,
    clip: Option<&'a Clip>,
    /// Weight decay is that of those which decay.
    params: Params,
    seed: u64,
    table: Table,
    /// Which of the steps these are.
    of: Vec<usize>,
}

/// Steps by the kernel that `kernel_of` says.
fn grouped<'a>(
    steps: &[Step<'a>],
    kernel_of: impl Fn(&Step) -> Result<String>,
) -> Result<Vec<Group<'a>>> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let entry = entry(step)?;
        let (kernel, seed) = (kernel_of(step)?, seed(step));
        let fits = |group: &&mut Group| {
            let clip = group.clip.map(std::ptr::from_ref) == step.clip.map(std::ptr::from_ref);
            let same = group.kernel == kernel && group.seed == seed && clip;
            same && goes_with(group.params, step.params)
        };
        let group = match groups.iter_mut().find(fits) {
            Some(group) => group,
            None => {
                let (table, of) = (Table::default(), vec![]);
                let (clip, params) = (step.clip, step.params);
                groups.push(Group { kernel, clip, params, seed, table, of });
                groups.last_mut().expect("it was pushed")
            }
        };
        group.params.weight_decay = group.params.weight_decay.max(step.params.weight_decay);
        group.table.push(&entry, step.grad.elem_count());
        group.of.push(index);
    }
    Ok(groups)
}

impl Group<'_> {
    fn launch(&self) -> Launch<'static> {
        Launch {
            program: &PROGRAM,
            kernel: self.kernel.clone(),
            head_dim: None,
            grid: [self.table.num_places(), 1, 1],
            block: CHUNK_THREADS,
            shared: 0,
        }
    }

    fn argument(&self) -> StepArgument {
        let c = Coefficients::new(self.params);
        StepArgument {
            beta1: c.beta1,
            rest1: c.rest1,
            beta2: c.beta2,
            rest2: c.rest2,
            keep: c.keep,
            step_size: c.step_size,
            inv_root_correction: c.inv_root_correction,
            eps: c.eps,
        }
    }
}

/// All `steps`, each with contiguous tensors of one GPU, in as few launches as there are kinds of them.
pub(crate) fn step_all(steps: &[Step]) -> Result<()> {
    let Some(first) = steps.first() else { return Ok(()) };
    let device = first.grad.device();
    for group in grouped(steps, kernel)? {
        let [entries, places] = group.table.on(device)?;
        let grad_scale = match group.clip {
            Some(clip) => clip.scale.clone(),
            None => upload(&[group.params.grad_scale as f32], 1, device)?,
        };
        let arguments = arguments![
            address(&entries)?,
            address(&places)?,
            group.argument(),
            address(&grad_scale)?,
            group.seed,
            group.params.step as u32,
        ];
        // SAFETY: the table has the places of whole tensors; what a variant does not use is null.
        unsafe { group.launch().run(device, &arguments) }?;
    }
    Ok(())
}

/// How far each of `steps` has moved its tensor, as [`crate::adamw::moved_all`] has it. Waits for the
/// device once for each kind of them.
pub(crate) fn moved_all(steps: &[Step]) -> Result<Vec<Moved>> {
    let mut all = vec![Moved::default(); steps.len()];
    let Some(first) = steps.first() else { return Ok(all) };
    let device = first.grad.device();
    for group in grouped(steps, |step| Ok(kernel_of_moved(step)))? {
        let [entries, places] = group.table.on(device)?;
        let partials = empty(2 * group.table.num_places(), DType::F64, device)?;
        let arguments = arguments![
            address(&entries)?,
            address(&places)?,
            group.argument(),
            address(&partials)?,
        ];
        // SAFETY: the table has the places of whole tensors, and there are two sums for each place.
        unsafe { group.launch().run(device, &arguments) }?;
        let sums = by_tensor(&group.table, &partials, 2)?;
        let (sums, _) = sums.as_chunks::<2>();
        for (index, [update_squares, weight_squares]) in group.of.iter().zip(sums) {
            let (update_squares, weight_squares) = (*update_squares, *weight_squares);
            all[*index] = Moved { update_squares, weight_squares };
        }
    }
    Ok(all)
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
    let grad = match step.grad.dtype() {
        DType::F32 => "f32",
        DType::BF16 => "bf16",
        other => bail!("adamw wants a gradient of f32 or bf16, not {other:?}"),
    };
    Ok(format!("adamw_{weights}_{}_{grad}", moments(step)))
}

fn kernel_of_moved(step: &Step) -> String {
    format!("moved_{}_{}", suffix(step.weights.tensor().dtype()), moments(step))
}

fn moments(step: &Step) -> &'static str {
    match step.moments {
        Moments::F32 { .. } => "m32",
        Moments::Blockwise8 { .. } => "m8",
    }
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
