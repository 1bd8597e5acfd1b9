//! Attention as a composition of candle's ops, for every dtype and device.
//!
//! Work goes by document and by chunk of [`QUERY_CHUNK`] queries, and each chunk looks only at the
//! keys that some query of it may see, so no `T × T` matrix and no mask tensor of that size ever
//! exist: the workspace is `H · QUERY_CHUNK · T` scores.

use std::ops::Range;

use candle_core::{D, Device, Result, Tensor, bail};

use super::Params;
use crate::accumulation_dtype;

/// Queries that are worked on at a time.
const QUERY_CHUNK: usize = 256;

/// As [`super::forward`], of documents that do not overlap and follow each other.
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &[Range<usize>],
    params: Params,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for document in documents {
        let (start, len) = (document.start, document.len());
        outputs.push(forward_from(
            &q.narrow(0, start, len)?,
            &k.narrow(0, start, len)?,
            &v.narrow(0, start, len)?,
            0,
            params,
        )?);
    }
    if outputs.len() == 1 { Ok(outputs.remove(0)) } else { Tensor::cat(&outputs, 0) }
}

/// As [`super::forward_from`].
pub(super) fn forward_from(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    query_offset: usize,
    params: Params,
) -> Result<Tensor> {
    let shape = Shape::of(q, k)?;
    let (k, v) = (heads_first(k)?, heads_first(v)?);
    let mut outputs = Vec::new();
    for queries in query_chunks(shape.queries) {
        let q = shape.group(q, &queries)?;
        let keys = visible_keys(&queries, query_offset, params.window);
        let (probabilities, _) = probabilities(&q, &k, &queries, &keys, query_offset, params)?;
        let v = v.narrow(1, keys.start, keys.len())?;
        outputs.push(shape.ungroup(&probabilities.to_dtype(v.dtype())?.matmul(&v)?)?);
    }
    if outputs.len() == 1 { Ok(outputs.remove(0)) } else { Tensor::cat(&outputs, 0) }
}

/// As [`super::backward`], of documents that do not overlap and follow each other.
pub(super) fn backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &[Range<usize>],
    params: Params,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let mut gradients: [Vec<Tensor>; 3] = Default::default();
    for document in documents {
        let (start, len) = (document.start, document.len());
        let of_document = backward_document(
            &q.narrow(0, start, len)?,
            &k.narrow(0, start, len)?,
            &v.narrow(0, start, len)?,
            params,
            &dy.narrow(0, start, len)?,
        )?;
        for (all, one) in gradients.iter_mut().zip(of_document) {
            all.push(one);
        }
    }
    let [dq, dk, dv] = gradients;
    Ok([Tensor::cat(&dq, 0)?, Tensor::cat(&dk, 0)?, Tensor::cat(&dv, 0)?])
}

/// With `P = softmax(S)`: `dV = Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P ∘ (dP − Σ_keys P ∘ dP)`.
fn backward_document(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    params: Params,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let dtype = q.dtype();
    let shape = Shape::of(q, k)?;
    let (k, v) = (heads_first(k)?, heads_first(v)?);
    let mut dq = Vec::new();
    let (mut dk, mut dv) = (None, None);
    for queries in query_chunks(shape.queries) {
        let q = shape.group(q, &queries)?;
        let dy = shape.group(dy, &queries)?;
        let keys = visible_keys(&queries, 0, params.window);
        let (p, cap_slope) = probabilities(&q, &k, &queries, &keys, 0, params)?;
        let k = k.narrow(1, keys.start, keys.len())?;
        let v = v.narrow(1, keys.start, keys.len())?;

        let d_v = p.to_dtype(dtype)?.transpose(1, 2)?.matmul(&dy)?;
        let dp = dy.matmul(&v.transpose(1, 2)?)?.to_dtype(p.dtype())?;
        let row_sums = (&p * &dp)?.sum_keepdim(D::Minus1)?;
        let mut ds = (p * dp.broadcast_sub(&row_sums)?)?;
        if let Some(slope) = cap_slope {
            ds = (ds * slope)?;
        }
        let ds = (ds * params.scale)?.to_dtype(dtype)?;
        dq.push(shape.ungroup(&ds.matmul(&k)?)?);
        let d_k = ds.transpose(1, 2)?.matmul(&q)?;
        add_keys(&mut dk, &d_k, &keys, shape.keys)?;
        add_keys(&mut dv, &d_v, &keys, shape.keys)?;
    }
    let tokens_first = |sum: Option<Tensor>| match sum {
        Some(sum) => sum.transpose(0, 1)?.contiguous()?.to_dtype(dtype),
        None => bail!("attention over a document without tokens"),
    };
    Ok([Tensor::cat(&dq, 0)?, tokens_first(dk)?, tokens_first(dv)?])
}

fn query_chunks(queries: usize) -> impl Iterator<Item = Range<usize>> {
    (0..queries).step_by(QUERY_CHUNK).map(move |start| start..(start + QUERY_CHUNK).min(queries))
}

/// The keys that at least one of the queries may see.
fn visible_keys(
    queries: &Range<usize>,
    query_offset: usize,
    window: Option<usize>,
) -> Range<usize> {
    let first = query_offset + queries.start;
    let start = window.map_or(0, |window| (first + 1).saturating_sub(window));
    start..query_offset + queries.end
}

/// Grouping of query heads by the key/value head that they share.
#[derive(Clone, Copy)]
struct Shape {
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
}

impl Shape {
    fn of(q: &Tensor, k: &Tensor) -> Result<Self> {
        let (queries, heads, head_dim) = q.dims3()?;
        let (keys, kv_heads, key_dim) = k.dims3()?;
        if key_dim != head_dim || kv_heads == 0 || heads % kv_heads != 0 {
            bail!("attention of q {:?} over k {:?}", q.dims(), k.dims());
        }
        Ok(Self { queries, keys, kv_heads, group: heads / kv_heads, head_dim })
    }

    /// `[T, H, D]` → `[K, G·C, D]` for the chunk's C queries.
    fn group(self, x: &Tensor, queries: &Range<usize>) -> Result<Tensor> {
        let Self { kv_heads, group, head_dim, .. } = self;
        x.narrow(0, queries.start, queries.len())?
            .reshape((queries.len(), kv_heads, group, head_dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?
            .reshape((kv_heads, group * queries.len(), head_dim))
    }

    /// `[K, G·C, D]` → `[C, H, D]`.
    fn ungroup(self, x: &Tensor) -> Result<Tensor> {
        let Self { kv_heads, group, head_dim, .. } = self;
        let queries = x.dim(1)? / group;
        x.reshape((kv_heads, group, queries, head_dim))?
            .permute((2, 0, 1, 3))?
            .contiguous()?
            .reshape((queries, kv_heads * group, head_dim))
    }
}

/// `[S, K, D]` → `[K, S, D]`.
fn heads_first(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// Probabilities `[K, G·C, S]` in f32 (f64 for f64), and the derivative of the soft-cap where there
/// is one.
fn probabilities(
    q: &Tensor,
    k: &Tensor,
    queries: &Range<usize>,
    keys: &Range<usize>,
    query_offset: usize,
    params: Params,
) -> Result<(Tensor, Option<Tensor>)> {
    let k = k.narrow(1, keys.start, keys.len())?;
    let scores = q.matmul(&k.transpose(1, 2)?)?;
    let scores = (scores.to_dtype(accumulation_dtype(q.dtype()))? * params.scale)?;
    let (scores, slope) = match params.softcap {
        None => (scores, None),
        Some(cap) => {
            let tanh = (scores / cap)?.tanh()?;
            let slope = (1.0 - tanh.sqr()?)?;
            ((tanh * cap)?, Some(slope))
        }
    };
    let scores = match mask(queries, keys, query_offset, params.window, &scores)? {
        None => scores,
        Some(mask) => {
            let (kv_heads, rows, width) = scores.dims3()?;
            let grouped = scores.reshape((kv_heads, rows / queries.len(), queries.len(), width))?;
            grouped.broadcast_add(&mask)?.reshape((kv_heads, rows, width))?
        }
    };
    let softmax = match scores.device() {
        Device::Cpu => candle_nn::ops::softmax_last_dim(&scores)?,
        _ => candle_nn::ops::softmax(&scores, D::Minus1)?,
    };
    Ok((softmax, slope))
}

/// 0 where the query may see the key, −∞ elsewhere: `[C, S]`; `None` where nothing is hidden.
fn mask(
    queries: &Range<usize>,
    keys: &Range<usize>,
    query_offset: usize,
    window: Option<usize>,
    scores: &Tensor,
) -> Result<Option<Tensor>> {
    let window = window.unwrap_or(usize::MAX);
    let mut values = Vec::with_capacity(queries.len() * keys.len());
    let mut hides = false;
    for query in queries.clone() {
        let query = query + query_offset;
        values.extend(keys.clone().map(|key| {
            let visible = key <= query && query - key < window;
            hides |= !visible;
            if visible { 0f32 } else { f32::NEG_INFINITY }
        }));
    }
    if !hides {
        return Ok(None);
    }
    let mask = Tensor::from_vec(values, (queries.len(), keys.len()), &Device::Cpu)?;
    Ok(Some(mask.to_device(scores.device())?.to_dtype(scores.dtype())?))
}

/// Adds the gradient of a range of keys `[K, S, D]` to the sum over all keys, in f32 (f64 for f64).
fn add_keys(sum: &mut Option<Tensor>, d: &Tensor, keys: &Range<usize>, total: usize) -> Result<()> {
    let wide = accumulation_dtype(d.dtype());
    let padded = d.to_dtype(wide)?.pad_with_zeros(1, keys.start, total - keys.end)?;
    *sum = Some(match sum.take() {
        Some(sum) => (sum + padded)?,
        None => padded,
    });
    Ok(())
}
