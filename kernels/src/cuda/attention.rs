//! `kernels/cuda/attention_forward.cu` and `attention_backward.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use std::cmp::Reverse;
use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Device, Result, Tensor};

use super::launch::{Launch, address, arguments, on_gpu, suffix};
use super::program::{Program, source};
use super::upload::upload;
use super::{cudnn, empty};
use crate::attention::Params;

static FORWARD: Program = source!("attention_forward");
static BACKWARD: Program = source!("attention_backward");

/// `Shape` of the sources.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u32,
    kv_heads: u32,
    q_stride: u64,
    kv_stride: u64,
    kv_head_stride: u64,
    query_offset: u32,
    window: u32,
    scale: f32,
    softcap: f32,
}

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for Shape {}

/// Whether the kernels take these: `q [N, H, D]`, `k` and `v` `[S, K, D]`.
pub(crate) fn takes(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let fits = match (q.dims(), k.dims()) {
        ([n, heads, dim], [s, kv_heads, kv_dim]) => {
            dim == kv_dim
                && dim % 16 == 0
                && (16..=256).contains(dim)
                && [n, heads, s, kv_heads].iter().all(|size| **size > 0)
                && heads % kv_heads == 0
        }
        _ => false,
    };
    fits && k.dims() == v.dims() && on_gpu(&[q, k, v])
}

/// Whether every row of `[N, H, D]` begins at a multiple of 16 bytes, as the kernels read them.
fn is_lined(t: &Tensor) -> bool {
    let line = 16 / t.dtype().size_in_bytes();
    let strides_fit = t.stride()[..2].iter().all(|stride| stride.is_multiple_of(line));
    t.stride()[2] == 1 && strides_fit && t.layout().start_offset().is_multiple_of(line)
}

/// The same numbers, contiguous and at a multiple of 16 bytes: a part of a tensor that is contiguous
/// where it lies may begin anywhere.
fn in_lines(t: &Tensor) -> Result<Tensor> {
    if is_lined(t) { t.contiguous() } else { t.force_contiguous() }
}

/// Queries, and what they look at, where the kernels can read them.
pub(super) struct Inputs {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    shape: Shape,
}

impl Inputs {
    pub(super) fn new(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        offset: usize,
        params: Params,
    ) -> Result<Self> {
        let (_, heads, dim) = q.dims3()?;
        let q_fits = is_lined(q) && (q.stride()[1] == dim || heads == 1);
        let q = if q_fits { q.clone() } else { in_lines(q)? };
        let kv_fit = is_lined(k) && is_lined(v) && k.stride() == v.stride();
        let (k, v) = if kv_fit { (k.clone(), v.clone()) } else { (in_lines(k)?, in_lines(v)?) };
        let shape = Shape {
            heads: heads as u32,
            kv_heads: k.dim(1)? as u32,
            q_stride: q.stride()[0] as u64,
            kv_stride: k.stride()[0] as u64,
            kv_head_stride: k.stride()[1] as u64,
            query_offset: offset as u32,
            window: params.window.map_or(u32::MAX, |window| window as u32),
            scale: params.scale as f32,
            softcap: params.softcap.unwrap_or(0.0) as f32,
        };
        Ok(Self { q, k, v, shape })
    }

    fn dim(&self) -> usize {
        self.q.dims()[2]
    }

    /// The output and the log-sum-exps, yet to be computed.
    pub(super) fn outputs(&self) -> Result<(Tensor, Tensor)> {
        let (tokens, heads, dim) = self.q.dims3()?;
        let device = self.q.device();
        let y = empty((tokens, heads, dim), self.q.dtype(), device)?;
        Ok((y, empty((tokens, heads), DType::F32, device)?))
    }

    /// Those of q, k and v, yet to be computed.
    pub(super) fn gradients(&self) -> Result<[Tensor; 3]> {
        let like = |tensor: &Tensor| empty(tensor.dims(), tensor.dtype(), tensor.device());
        Ok([like(&self.q)?, like(&self.k)?, like(&self.v)?])
    }

    fn bytes_of_head(&self) -> usize {
        self.dim() * self.q.dtype().size_in_bytes()
    }

    /// A launch without its block's threads and shared memory.
    fn launch(&self, program: &'static Program, kernel: &str, grid: [usize; 3]) -> Launch<'static> {
        Launch {
            program,
            kernel: format!("{kernel}_{}", suffix(self.q.dtype())),
            head_dim: Some(self.dim()),
            grid,
            block: 0,
            shared: 0,
        }
    }
}

/// `{start, len, first}` for every `rows` tokens of each document: those with the most work first, so
/// that the last blocks are short ones.
fn tiles(
    documents: &[Range<usize>],
    rows: usize,
    work: impl Fn([u32; 3]) -> u32,
    device: &Device,
) -> Result<Tensor> {
    let of = |document: &Range<usize>| {
        let (start, len) = (document.start as u32, document.len() as u32);
        (0..len).step_by(rows).map(move |first| [start, len, first])
    };
    let mut all: Vec<[u32; 3]> = documents.iter().flat_map(of).collect();
    all.sort_by_key(|tile| Reverse(work(*tile)));
    upload(all.as_flattened(), (all.len(), 3), device)
}

/// Tiles of queries: the later one comes, the more keys it sees.
fn query_tiles(documents: &[Range<usize>], rows: usize, device: &Device) -> Result<Tensor> {
    tiles(documents, rows, |[_, _, first]| first, device)
}

/// Tiles of keys: all queries from the first key on see one, or as many as its window has.
fn key_tiles(
    documents: &[Range<usize>],
    rows: usize,
    window: u32,
    device: &Device,
) -> Result<Tensor> {
    let queries = |[_, len, first]: [u32; 3]| {
        let last = (first + rows as u32).min(len) - 1;
        len.min(last.saturating_add(window)) - first
    };
    tiles(documents, rows, queries, device)
}

/// Queries and keys that a block of the forward pass holds.
fn forward_tile(bytes_of_head: usize) -> [usize; 2] {
    match bytes_of_head {
        0..=256 => [128, 32],
        257..=512 => [128, 16],
        _ => [32, 16],
    }
}

/// Rows of its own, and of the other side, that a block of the backward pass holds.
fn backward_tile(bytes_of_head: usize) -> [usize; 2] {
    match bytes_of_head {
        0..=256 => [64, 32],
        257..=512 => [64, 16],
        _ => [16, 16],
    }
}

/// As [`crate::attention::forward`], of documents that follow each other.
pub(crate) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &[Range<usize>],
    params: Params,
) -> Result<Tensor> {
    Ok(forward_of(&Inputs::new(q, k, v, 0, params)?, documents, params)?.0)
}

/// As [`crate::attention::forward_from`].
pub(crate) fn forward_from(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    query_offset: usize,
    params: Params,
) -> Result<Tensor> {
    let document = 0..q.dim(0)?;
    Ok(own_forward(&Inputs::new(q, k, v, query_offset, params)?, &[document])?.0)
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug)]
pub(crate) struct Left {
    /// Of every row, `[N, H]`.
    pub(crate) log_sum_exp: Tensor,
    /// Whether the backward pass wants the output.
    pub(crate) wants_output: bool,
}

/// As [`crate::attention::forward_kept`].
pub(crate) fn forward_kept(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &[Range<usize>],
    params: Params,
) -> Result<(Tensor, Left)> {
    let inputs = Inputs::new(q, k, v, 0, params)?;
    let (y, log_sum_exp) = forward_of(&inputs, documents, params)?;
    let wants_output = cudnn::may_compute_backward(&inputs, documents);
    Ok((y, Left { log_sum_exp, wants_output }))
}

/// The output, and the log-sum-exp of every row, `[N, H]`.
fn forward_of(
    inputs: &Inputs,
    documents: &[Range<usize>],
    params: Params,
) -> Result<(Tensor, Tensor)> {
    let (y, lse) = inputs.outputs()?;
    let rest = cudnn::forward(inputs, documents, params, [&y, &lse])?;
    own_forward_into(inputs, &rest, [&y, &lse])?;
    Ok((y, lse))
}

/// The same by chandler's own kernels.
pub(super) fn own_forward(inputs: &Inputs, documents: &[Range<usize>]) -> Result<(Tensor, Tensor)> {
    let (y, lse) = inputs.outputs()?;
    own_forward_into(inputs, documents, [&y, &lse])?;
    Ok((y, lse))
}

fn own_forward_into(
    inputs: &Inputs,
    documents: &[Range<usize>],
    [y, lse]: [&Tensor; 2],
) -> Result<()> {
    let (device, heads) = (inputs.q.device(), inputs.q.dim(1)?);
    if documents.is_empty() {
        return Ok(());
    }
    let [queries, keys] = forward_tile(inputs.bytes_of_head());
    let tiles = query_tiles(documents, queries, device)?;
    let launch = Launch {
        block: 2 * queries,
        shared: (queries + 4 * keys) * (inputs.bytes_of_head() + 16),
        ..inputs.launch(&FORWARD, "attention_forward", [tiles.dim(0)?, heads, 1])
    };
    let arguments = arguments![
        address(&inputs.q)?,
        address(&inputs.k)?,
        address(&inputs.v)?,
        address(&tiles)?,
        address(y)?,
        address(lse)?,
        inputs.shape,
    ];
    // SAFETY: the strides are those of the tensors, and the tiles are within the documents.
    unsafe { launch.run(device, &arguments) }
}

/// As [`crate::attention::backward`], of documents that follow each other: the output is computed again
/// first.
pub(crate) fn backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &[Range<usize>],
    params: Params,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let (y, left) = forward_kept(q, k, v, documents, params)?;
    let rows = if left.wants_output { Rows::Outputs(y) } else { Rows::Sums(delta(dy, &y)?) };
    backward_kept([q, k, v, dy], documents, params, &left.log_sum_exp, &rows)
}

/// What is known of the rows of the output.
#[derive(Debug)]
pub(crate) enum Rows {
    /// All of them, `[N, H, D]`.
    Outputs(Tensor),
    /// The [`delta`] of each.
    Sums(Tensor),
}

/// The same with what the forward pass has left, and with what is known of its output.
pub(crate) fn backward_kept(
    [q, k, v, dy]: [&Tensor; 4],
    documents: &[Range<usize>],
    params: Params,
    lse: &Tensor,
    rows: &Rows,
) -> Result<[Tensor; 3]> {
    let inputs = Inputs::new(q, k, v, 0, params)?;
    let dy = in_lines(dy)?;
    let gradients = inputs.gradients()?;
    let [dq, dk, dv] = &gradients;
    let (rest, sums);
    let delta = match rows {
        Rows::Outputs(y) => {
            rest = cudnn::backward(&inputs, &dy, documents, params, [y, lse], [dq, dk, dv])?;
            if rest.is_empty() {
                return Ok(gradients);
            }
            sums = delta(&dy, y)?;
            &sums
        }
        Rows::Sums(delta) => {
            rest = documents.to_vec();
            delta
        }
    };
    own_backward_into(&inputs, &dy, &rest, [lse, delta], [dq, dk, dv])?;
    Ok(gradients)
}

/// The same by chandler's own kernels.
pub(super) fn own_backward(
    inputs: &Inputs,
    dy: &Tensor,
    documents: &[Range<usize>],
    left: [&Tensor; 2],
) -> Result<[Tensor; 3]> {
    let gradients = inputs.gradients()?;
    let [dq, dk, dv] = &gradients;
    own_backward_into(inputs, dy, documents, left, [dq, dk, dv])?;
    Ok(gradients)
}

fn own_backward_into(
    inputs: &Inputs,
    dy: &Tensor,
    documents: &[Range<usize>],
    [lse, delta]: [&Tensor; 2],
    [dq, dk, dv]: [&Tensor; 3],
) -> Result<()> {
    let device = inputs.q.device();
    let [rows, others] = backward_tile(inputs.bytes_of_head());
    let tiles = query_tiles(documents, rows, device)?;
    let (heads, kv_heads, dim) = (inputs.q.dim(1)?, inputs.k.dim(1)?, inputs.dim());
    let of = |kernel, grid| Launch {
        block: 2 * rows,
        shared: (2 * rows + 4 * others) * (inputs.bytes_of_head() + 16),
        ..inputs.launch(&BACKWARD, kernel, grid)
    };
    let (q, k, v) = (address(&inputs.q)?, address(&inputs.k)?, address(&inputs.v)?);
    let (dy, lse, delta) = (address(dy)?, address(lse)?, address(delta)?);
    let to_q = arguments![q, k, v, dy, lse, delta, address(&tiles)?, address(dq)?, inputs.shape];
    // SAFETY: as for the forward pass; dq has a row for each query.
    unsafe { of("attention_backward_q", [tiles.dim(0)?, heads, 1]).run(device, &to_q) }?;
    let tiles = key_tiles(documents, rows, inputs.shape.window, device)?;
    let parts = if dim > 128 { 2 } else { 1 };
    let to_kv = arguments![
        q,
        k,
        v,
        dy,
        lse,
        delta,
        address(&tiles)?,
        address(dk)?,
        address(dv)?,
        inputs.shape,
    ];
    // SAFETY: as for the forward pass; dk and dv have a row for each key.
    unsafe { of("attention_backward_kv", [tiles.dim(0)?, kv_heads, parts]).run(device, &to_kv) }
}

/// `Σ dy · y` of every row, `[N, H]`.
pub(crate) fn delta(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    let (tokens, heads, dim) = y.dims3()?;
    let (dy, y) = (in_lines(dy)?, in_lines(y)?);
    let delta = empty((tokens, heads), DType::F32, y.device())?;
    let launch = Launch {
        program: &BACKWARD,
        kernel: format!("attention_delta_{}", suffix(y.dtype())),
        head_dim: Some(dim),
        grid: [(tokens * heads).div_ceil(32), 1, 1],
        block: 256,
        shared: 0,
    };
    let arguments =
        arguments![address(&dy)?, address(&y)?, address(&delta)?, (tokens * heads) as u64];
    // SAFETY: dy and y have a row of a head for each sum.
    unsafe { launch.run(y.device(), &arguments) }?;
    Ok(delta)
}
