//! Attention by NVIDIA's cuDNN, where it is installed: it has kernels for each generation of cards that
//! use what only that one has.
//!
//! It computes long documents in bf16 ([`share`]); the rest, and everything where there is no cuDNN, is
//! for chandler's own kernels. The backward pass is the library's where it sums in the same order every
//! time, so that the same seed gives the same bits: for compute capability 9.0. Each plan is compared with
//! the own kernels before it is used ([`check`]), and left alone if it differs.

mod attribute;
mod check;
mod descriptor;
mod graph;
mod library;
mod numbers;
mod run;
mod session;
mod share;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result, Tensor};

use super::attention::Inputs;
use super::device::capability;
use crate::attention::{HeadShape, Params};
use graph::Pass;
use run::Run;
use session::Session;
use share::{RUN_BACKWARD, end_to_end, room, share};

/// Whether a GPU was opened whose backward passes the library computes.
static COMPUTES_BACKWARD: AtomicBool = AtomicBool::new(false);

/// The library's release, or why there is none.
pub(crate) fn version() -> std::result::Result<String, &'static str> {
    library::functions().map(library::Functions::version)
}

/// Notes what the library does on a GPU that is being opened.
pub(crate) fn opened(device: &Device) -> Result<()> {
    let has_ordered_sums = capability(device)? == 90;
    COMPUTES_BACKWARD.store(has_ordered_sums && version().is_ok(), Ordering::Relaxed);
    Ok(())
}

/// Whether backward passes of long documents may be the library's.
pub(crate) fn computes_backward() -> bool {
    COMPUTES_BACKWARD.load(Ordering::Relaxed)
}

/// Bytes that a backward pass of the library takes over documents of these lengths, beside those of the own
/// kernels: its workspace, a comparison, and the output. Nothing where it computes none of them.
pub(crate) fn backward_bytes(heads: HeadShape, lengths: &[usize], dtype: DType) -> usize {
    let (runs, _) = share(&end_to_end(lengths), RUN_BACKWARD);
    let tokens = |run: &share::Run| run[run.len() - 1].end - run[0].start;
    let most = runs.iter().map(tokens).max().filter(|_| computes_backward());
    let Some(most) = most.filter(|_| dtype == DType::BF16) else { return 0 };
    let [of_q, _, dim] = heads;
    let output = lengths.iter().sum::<usize>() * of_q * dim * dtype.size_in_bytes();
    crate::gpu_sizes::library_backward(heads, room(most)) + check::bytes(heads) + output
}

/// Whether the library's graphs have such tensors: bf16, contiguous, as many queries as keys.
fn takes(inputs: &Inputs) -> bool {
    let Inputs { q, k, v, .. } = inputs;
    let dim = q.dims()[2];
    q.dtype() == DType::BF16
        && [q, k, v].iter().all(|tensor| tensor.is_contiguous())
        && q.dims()[0] == k.dims()[0]
        && dim.is_multiple_of(8)
        && dim <= 256
}

/// Whether the backward pass of any of these documents may be the library's, which needs the output.
pub(super) fn may_compute_backward(inputs: &Inputs, documents: &[Range<usize>]) -> bool {
    computes_backward() && takes(inputs) && !share(documents, RUN_BACKWARD).0.is_empty()
}

/// Computes the output and the log-sum-exps of long documents, and returns the other ones.
pub(super) fn forward(
    inputs: &Inputs,
    documents: &[Range<usize>],
    params: Params,
    left: [&Tensor; 2],
) -> Result<Vec<Range<usize>>> {
    if version().is_err() {
        return Ok(documents.to_vec());
    }
    each_run(Pass::Forward, inputs, documents, params, |run, documents| {
        run.forward(inputs, documents, params, left)
    })
}

/// Computes the gradients of long documents, and returns the other ones.
pub(super) fn backward(
    inputs: &Inputs,
    dy: &Tensor,
    documents: &[Range<usize>],
    params: Params,
    left: [&Tensor; 2],
    gradients: [&Tensor; 3],
) -> Result<Vec<Range<usize>>> {
    if !computes_backward() {
        return Ok(documents.to_vec());
    }
    each_run(Pass::Backward, inputs, documents, params, |run, documents| {
        run.backward(inputs, dy, documents, params, left, gradients)
    })
}

/// Does `work` with each run of long documents that the library has a plan for, and returns the documents
/// that it has none for.
fn each_run(
    pass: Pass,
    inputs: &Inputs,
    documents: &[Range<usize>],
    params: Params,
    work: impl Fn(&Run, &[Range<usize>]) -> Result<()>,
) -> Result<Vec<Range<usize>>> {
    let most = if pass == Pass::Backward { RUN_BACKWARD } else { usize::MAX };
    let (runs, mut rest) = share(documents, most);
    if runs.is_empty() || !takes(inputs) {
        return Ok(documents.to_vec());
    }
    let device = inputs.q.device();
    let found = Session::with(device, |session| {
        for documents in runs {
            let shape = session::shape(pass, inputs, &documents, params);
            match session.run(&shape, params.scale, device)? {
                Some(run) => work(&run, &documents)?,
                None => rest.extend(documents),
            }
        }
        Ok(rest)
    })?;
    Ok(found.unwrap_or_else(|| documents.to_vec()))
}
