//! Causal attention over documents laid end to end, with grouped query heads, a sliding window and
//! soft-capped scores; the backward pass computes the probabilities again instead of keeping them.
//!
//! f32 and bf16 on the CPU go through `cpu`, where one pass over tiles of scores does the two
//! products and the softmax between them (FlashAttention: Dao et al., 2022, arXiv:2205.14135).
//! Everything else goes through `composed`, which is also what the fast path is tested against.
//! Neither ever holds a `T × T` matrix.

mod backward;
mod composed;
mod cpu;
mod forward;
mod kept;
mod softmax;
mod strip;

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

#[cfg(feature = "cuda")]
use crate::cuda::{attention as gpu, cudnn::backward_bytes as library_bytes};
use crate::gpu_sizes;
use crate::profile::{self, Op};
use crate::rehearsal::Rehearsal;
use cpu::Document;
pub use kept::{Kept, backward_kept, forward_kept};
use strip::Heads;

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
    let documents = documents(cu_seqlens, q.dim(0)?)?;
    let flops = 4 * q.elem_count() / q.dim(0)?.max(1) * visible(&documents, params.window);
    let _timer = profile::over(Op::AttentionForward, flops, &[q, k, v]);
    let fast: Vec<Document> = documents.iter().map(Document::alone).collect();
    match fast_dtype([q, k, v], params)? {
        Some(DType::BF16) => cpu::forward::<bf16>([q, k, v], &fast, params),
        Some(_) => cpu::forward::<f32>([q, k, v], &fast, params),
        #[cfg(feature = "cuda")]
        None if gpu::takes(q, k, v) && params.window != Some(0) => {
            gpu::forward(q, k, v, &documents, params)
        }
        None => composed::forward(q, k, v, &documents, params),
    }
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
    let _timer = profile::over(Op::AttentionForward, 0, &[q, k, v]);
    let (queries, keys) = (q.dim(0)?, k.dim(0)?);
    if query_offset + queries > keys {
        bail!("{queries} queries from position {query_offset} on over {keys} keys");
    }
    let document = [Document { first: 0, queries, query_offset }];
    match fast_dtype([q, k, v], params)? {
        Some(DType::BF16) => cpu::forward::<bf16>([q, k, v], &document, params),
        Some(_) => cpu::forward::<f32>([q, k, v], &document, params),
        #[cfg(feature = "cuda")]
        None if gpu::takes(q, k, v) && params.window != Some(0) => {
            gpu::forward_from(q, k, v, query_offset, params)
        }
        None => composed::forward_from(q, k, v, query_offset, params),
    }
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
    let documents = documents(cu_seqlens, q.dim(0)?)?;
    let flops = 10 * q.elem_count() / q.dim(0)?.max(1) * visible(&documents, params.window);
    let _timer = profile::over(Op::AttentionBackward, flops, &[q, k, v, dy]);
    if dy.dims() != q.dims() {
        bail!("attention of q {:?} with an output gradient {:?}", q.dims(), dy.dims());
    }
    let fast: Vec<Document> = documents.iter().map(Document::alone).collect();
    match fast_dtype([q, k, v], params)?.filter(|dtype| cpu::is(dy, *dtype)) {
        Some(DType::BF16) => cpu::backward::<bf16>([q, k, v, dy], &fast, params),
        Some(_) => cpu::backward::<f32>([q, k, v, dy], &fast, params),
        #[cfg(feature = "cuda")]
        None if gpu::takes(q, k, v) && params.window != Some(0) && dy.dtype() == q.dtype() => {
            gpu::backward(q, k, v, &documents, params, dy)
        }
        None => composed::backward(q, k, v, &documents, params, dy),
    }
}

/// Query heads, key/value heads and the dimension of a head.
pub type HeadShape = [usize; 3];

/// Takes the buffers of [`forward`] over documents of these lengths, and gives them back.
pub fn rehearse_forward(
    pool: &mut Rehearsal,
    heads: HeadShape,
    documents: &[usize],
    params: Params,
    dtype: DType,
) {
    if pool.is_of_gpu() {
        let bytes = gpu_sizes::attention_forward(heads, documents.iter().sum());
        return pool.pass(|passing| &mut passing.attention_forward, bytes);
    }
    let documents = laid_end_to_end(documents);
    rehearse_forward_over(pool, heads, &documents, params, dtype);
}

/// Takes the buffers of [`forward_from`] over `queries` from position `query_offset` on, and gives
/// them back.
pub fn rehearse_forward_from(
    pool: &mut Rehearsal,
    heads: HeadShape,
    [query_offset, queries]: [usize; 2],
    params: Params,
    dtype: DType,
) {
    if pool.is_of_gpu() {
        let bytes = gpu_sizes::attention_forward(heads, queries);
        return pool.pass(|passing| &mut passing.attention_forward, bytes);
    }
    let document = Document { first: 0, queries, query_offset };
    rehearse_forward_over(pool, heads, &[document], params, dtype);
}

/// Takes the buffers of [`backward`] over documents of these lengths, and gives them back.
pub fn rehearse_backward(
    pool: &mut Rehearsal,
    heads: HeadShape,
    documents: &[usize],
    params: Params,
    dtype: DType,
) {
    if pool.is_of_gpu() {
        let bytes = gpu_sizes::attention_backward(heads, documents.iter().sum())
            + library_bytes(heads, documents, dtype);
        return pool.pass(|passing| &mut passing.attention_backward, bytes);
    }
    let (documents, heads) = (laid_end_to_end(documents), Heads::from(heads));
    match dtype {
        DType::F32 => cpu::rehearse_backward::<f32>(pool, heads, &documents, params),
        DType::BF16 => cpu::rehearse_backward::<bf16>(pool, heads, &documents, params),
        _ => {}
    }
}

/// There is no library in this build.
#[cfg(not(feature = "cuda"))]
fn library_bytes(_heads: HeadShape, _documents: &[usize], _dtype: DType) -> usize {
    0
}

fn rehearse_forward_over(
    pool: &mut Rehearsal,
    heads: HeadShape,
    documents: &[Document],
    params: Params,
    dtype: DType,
) {
    let heads = Heads::from(heads);
    match dtype {
        DType::F32 => cpu::rehearse_forward::<f32>(pool, heads, documents, params),
        DType::BF16 => cpu::rehearse_forward::<bf16>(pool, heads, documents, params),
        _ => {}
    }
}

fn laid_end_to_end(lengths: &[usize]) -> Vec<Document> {
    let mut end = 0;
    let document = |length: &usize| {
        end += length;
        Document::alone(&(end - length..end))
    };
    lengths.iter().filter(|length| **length > 0).map(document).collect()
}

/// Pairs of a query and a key that it sees.
fn visible(documents: &[Range<usize>], window: Option<usize>) -> usize {
    let of = |tokens: usize| {
        let window = window.unwrap_or(tokens).min(tokens);
        window * (window + 1) / 2 + (tokens - window) * window
    };
    documents.iter().map(|document| of(document.len())).sum()
}

/// The type that the fast path would compute in, if it takes these.
fn fast_dtype(qkv: [&Tensor; 3], params: Params) -> Result<Option<DType>> {
    let [q, k, v] = qkv.map(Tensor::dims);
    let sees = params.scale > 0.0 && params.window != Some(0);
    let fits = sees && k == v && q.iter().chain(k).all(|size| *size > 0);
    let dtype = crate::cpu::fast_dtype(&qkv).filter(|_| fits);
    if dtype.is_some() && (q.len() != 3 || k.len() != 3 || q[2] != k[2] || q[1] % k[1] != 0) {
        bail!("attention of q {q:?} over k {k:?}");
    }
    Ok(dtype)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::{D, Device};
    use proptest::prelude::*;

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

    fn whole(x: &Tensor) -> Result<Tensor> {
        x.to_dtype(DType::F64)
    }

    /// The largest error of the fast path, relative to the largest value, in `y`, `dq`, `dk`, `dv`.
    fn errors(
        dtype: DType,
        cu_seqlens: &[u32],
        [group, kv_heads, dim]: [usize; 3],
        params: Params,
    ) -> Result<Vec<f64>> {
        let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
        let heads = group * kv_heads;
        let of = |heads| [tokens, heads, dim];
        let shapes = [of(heads), of(kv_heads), of(kv_heads), of(heads)];
        let shapes: Vec<&[usize]> = shapes.iter().map(|shape| &shape[..]).collect();
        let x = check::random(&shapes, dtype)?;
        assert!(fast_dtype([&x[0], &x[1], &x[2]], params)?.is_some());
        let run = |x: &[Tensor]| -> Result<Vec<Tensor>> {
            let y = forward(&x[0], &x[1], &x[2], cu_seqlens, params)?;
            let [dq, dk, dv] = backward(&x[0], &x[1], &x[2], cu_seqlens, params, &x[3])?;
            Ok(vec![y, dq, dk, dv])
        };
        let exact = run(&x.iter().map(whole).collect::<Result<Vec<_>>>()?)?;
        let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
        run(&x)?
            .iter()
            .zip(&exact)
            .map(|(got, exact)| {
                assert_eq!(got.dtype(), dtype);
                Ok(largest(&(whole(got)? - exact)?)? / largest(exact)?.max(0.1))
            })
            .collect()
    }

    fn fast_path_is_right(cu_seqlens: &[u32], sizes: [usize; 3], params: Params) -> Result<()> {
        for (dtype, bound) in [(DType::F32, 2e-5), (DType::BF16, 1.2e-2)] {
            for error in errors(dtype, cu_seqlens, sizes, params)? {
                assert!(error < bound, "{dtype:?} {cu_seqlens:?} {sizes:?} {params:?}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_fast_path_is_right_over_many_blocks() -> Result<()> {
        let plain = Params { scale: 0.3, softcap: None, window: None };
        fast_path_is_right(&[0, 700], [2, 1, 64], plain)?;
        fast_path_is_right(&[0, 150, 450], [3, 2, 40], plain)?;
        fast_path_is_right(&[0, 400], [7, 1, 64], Params { window: Some(130), ..plain })?;
        fast_path_is_right(&[0, 300], [64, 1, 16], Params { softcap: Some(2.0), ..plain })?;
        fast_path_is_right(&[0, 260], [1, 2, 128], Params { scale: 4.0, ..plain })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_fast_path_is_right_on_ragged_shapes(
            lens in proptest::collection::vec(0u32..70, 1..4),
            group in 1usize..7,
            kv_heads in 1usize..4,
            dim in 1usize..50,
            window in proptest::option::of(1usize..60),
            softcap in proptest::option::of(0.5f64..4.0),
        ) {
            prop_assume!(lens.iter().sum::<u32>() > 0);
            let mut cu_seqlens = vec![0];
            for len in lens {
                cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + len);
            }
            let params = Params { scale: 0.7, softcap, window };
            fast_path_is_right(&cu_seqlens, [group, kv_heads, dim], params)
                .expect("shapes that fit");
        }

        #[test]
        fn the_fast_path_is_right_at_an_offset(
            queries in 1usize..50,
            offset in 0usize..230,
            unused in 0usize..3,
            group in 1usize..5,
            window in proptest::option::of(1usize..150),
        ) {
            let params = Params { scale: 0.7, softcap: None, window };
            let keys = offset + queries + unused;
            let shapes: [&[usize]; 3] = [&[queries, group * 2, 24], &[keys, 2, 24], &[keys, 2, 24]];
            let run = |x: &[Tensor]| forward_from(&x[0], &x[1], &x[2], offset, params);
            let check = |dtype, bound| {
                let x = check::random(&shapes, dtype)?;
                let exact = run(&x.iter().map(whole).collect::<Result<Vec<_>>>()?)?;
                check::close(&exact, &run(&x)?, bound)
            };
            check(DType::F32, 3e-6).expect("shapes that fit");
            check(DType::BF16, 1e-2).expect("shapes that fit");
        }
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() -> Result<()> {
        let params = Params { scale: 0.3, softcap: None, window: Some(300) };
        let (n, cu_seqlens) = (900, [0, 20, 870, 900]);
        for dtype in [DType::F32, DType::BF16] {
            let x = check::random(&[&[n, 4, 32], &[n, 2, 32], &[n, 2, 32], &[n, 4, 32]], dtype)?;
            let run = |threads| -> Result<Vec<Vec<f32>>> {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let (y, [dq, dk, dv]) = pool.expect("a pool").install(|| -> Result<_> {
                    let y = forward(&x[0], &x[1], &x[2], &cu_seqlens, params)?;
                    Ok((y, backward(&x[0], &x[1], &x[2], &cu_seqlens, params, &x[3])?))
                })?;
                let bits = |x: &Tensor| x.flatten_all()?.to_dtype(DType::F32)?.to_vec1();
                [y, dq, dk, dv].iter().map(bits).collect()
            };
            assert!(run(1)? == run(3)?, "{dtype:?}");
        }
        Ok(())
    }

    #[test]
    fn a_row_that_is_not_a_number_spoils_itself_alone() -> Result<()> {
        let params = Params { scale: 0.3, softcap: None, window: None };
        let x = check::random(&[&[40, 1, 8], &[40, 1, 8], &[40, 1, 8]], DType::F32)?;
        let mut q = x[0].flatten_all()?.to_vec1::<f32>()?;
        q[17 * 8 + 3] = f32::NAN;
        let q = Tensor::from_vec(q, (40, 1, 8), &Device::Cpu)?;
        let y = forward(&q, &x[1], &x[2], &[0, 40], params)?.squeeze(1)?.to_vec2::<f32>()?;
        for (token, row) in y.iter().enumerate() {
            assert_eq!(row.iter().all(|x| x.is_nan()), token == 17, "{token}: {row:?}");
        }
        Ok(())
    }
}
