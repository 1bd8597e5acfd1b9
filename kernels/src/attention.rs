//! Causal attention over documents laid end to end, with grouped query heads, a sliding window and
//! soft-capped scores; the backward pass computes the probabilities again instead of keeping them.
//!
//! Work goes by document and by chunk of [`QUERY_CHUNK`] queries, and each chunk looks only at the
//! keys that some query of it may see, so no `T × T` matrix and no mask tensor of that size ever
//! exist: the workspace is `H · QUERY_CHUNK · T` scores.

use std::ops::Range;

use candle_core::{D, Device, Result, Tensor, bail};

use crate::accumulation_dtype;

/// Queries that are worked on at a time.
pub const QUERY_CHUNK: usize = 256;

/// What distinguishes one layer's attention from another's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Factor on `q · k`, usually `1/√D`.
    pub scale: f64,
    /// Gemma 2's `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// A query sees a key at most `window − 1` positions back.
    pub window: Option<usize>,
}

/// `q [N, H, D]`, `k` and `v` `[N, K, D]`, document boundaries `cu_seqlens` (first 0, last N) →
/// `[N, H, D]`. Query head `h` reads key/value head `h · K / H`.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: Params,
) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for document in documents(cu_seqlens, q.dim(0)?)? {
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

/// One document whose first query stands at position `query_offset` of the keys, as when decoding
/// with a cache: `q [T, H, D]`, `k` and `v` `[S, K, D]`, `S ≥ query_offset + T` → `[T, H, D]`.
pub fn forward_from(
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

/// Gradients of `q`, `k` and `v` (their dtypes) from the saved inputs and `dy [N, H, D]`.
pub fn backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &[u32],
    params: Params,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let mut gradients: [Vec<Tensor>; 3] = Default::default();
    for document in documents(cu_seqlens, q.dim(0)?)? {
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

/// The documents that `cu_seqlens` divides `tokens` into, empty ones left out.
fn documents(cu_seqlens: &[u32], tokens: usize) -> Result<Vec<Range<usize>>> {
    let ordered = cu_seqlens.is_sorted() && cu_seqlens.len() >= 2;
    if !ordered || cu_seqlens[0] != 0 || cu_seqlens[cu_seqlens.len() - 1] as usize != tokens {
        bail!("cu_seqlens {cu_seqlens:?} does not divide {tokens} tokens");
    }
    let ranges = cu_seqlens.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    Ok(ranges.filter(|range| !range.is_empty()).collect())
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
    Ok((candle_nn::ops::softmax_last_dim(&scores)?, slope))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::DType;

    /// Attention with the whole mask written out, from ops that candle differentiates.
    fn reference(q: &Tensor, k: &Tensor, v: &Tensor, cu: &[u32], params: Params) -> Result<Tensor> {
        let (tokens, heads, _) = q.dims3()?;
        let kv_heads = k.dim(1)?;
        let head = |x: &Tensor, h: usize| x.narrow(1, h, 1)?.squeeze(1);
        let document = |t: usize| cu.iter().filter(|start| (**start as usize) <= t).count();
        let hidden: Vec<f64> = (0..tokens)
            .flat_map(|query| {
                (0..tokens).map(move |key| {
                    let near = params.window.is_none_or(|w| query < key + w);
                    let visible = key <= query && near && document(key) == document(query);
                    if visible { 0.0 } else { f64::NEG_INFINITY }
                })
            })
            .collect();
        let mask = Tensor::from_vec(hidden, (tokens, tokens), &Device::Cpu)?;
        let mut outputs = Vec::new();
        for h in 0..heads {
            let kv = h * kv_heads / heads;
            let mut scores = (head(q, h)?.matmul(&head(k, kv)?.t()?)? * params.scale)?;
            if let Some(cap) = params.softcap {
                scores = ((scores / cap)?.tanh()? * cap)?;
            }
            let p = candle_nn::ops::softmax(&(scores + &mask)?, D::Minus1)?;
            outputs.push(p.matmul(&head(v, kv)?)?.unsqueeze(1)?);
        }
        Tensor::cat(&outputs, 1)
    }

    #[test]
    fn matches_the_written_out_composition() -> Result<()> {
        let plain = Params { scale: 0.4, softcap: None, window: None };
        let cases: [(&[u32], Params); 5] = [
            (&[0, 7], plain),
            (&[0, 3, 3, 7], plain),
            (&[0, 5, 7], Params { window: Some(2), ..plain }),
            (&[0, 7], Params { softcap: Some(1.5), ..plain }),
            (&[0, 300, 311], Params { window: Some(20), softcap: Some(3.0), ..plain }),
        ];
        for (cu_seqlens, params) in cases {
            let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
            check::pair(
                &[&[tokens, 4, 3], &[tokens, 2, 3], &[tokens, 2, 3]],
                |x| reference(&x[0], &x[1], &x[2], cu_seqlens, params),
                |x| forward(&x[0], &x[1], &x[2], cu_seqlens, params),
                |x, dy| Ok(backward(&x[0], &x[1], &x[2], cu_seqlens, params, dy)?.into()),
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_query_at_an_offset_sees_what_it_saw_in_the_whole_document() -> Result<()> {
        let params = Params { scale: 0.5, softcap: None, window: Some(4) };
        let x = check::random(&[&[9, 4, 2], &[9, 2, 2], &[9, 2, 2]], DType::F64)?;
        let whole = forward(&x[0], &x[1], &x[2], &[0, 9], params)?;
        let last = forward_from(&x[0].narrow(0, 7, 2)?, &x[1], &x[2], 7, params)?;
        check::close(&whole.narrow(0, 7, 2)?, &last, 1e-12)
    }

    #[test]
    fn boundaries_that_do_not_divide_the_tokens_are_refused() -> Result<()> {
        let x = check::random(&[&[4, 1, 2]], DType::F64)?.remove(0);
        let params = Params { scale: 1.0, softcap: None, window: None };
        for cu_seqlens in [&[0, 3][..], &[1, 4], &[0], &[0, 3, 2, 4]] {
            assert!(forward(&x, &x, &x, cu_seqlens, params).is_err(), "{cu_seqlens:?}");
        }
        Ok(())
    }
}
