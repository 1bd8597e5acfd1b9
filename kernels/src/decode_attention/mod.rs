//! Attention of one new token a row over the keys and values that a cache holds.
//!
//! A cache is `[rows, K, capacity, D]`: what one key/value head reads lies in one piece. Query heads
//! that share a key/value head are worked on together, so the cache is read once. Long rows are cut
//! into pieces of `PIECE` keys whose softmax sums are put together at the end, as in
//! flash-decoding (Dao et al. 2023); the cut depends on the row's own length alone.

mod attend;
mod places;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use self::attend::Attend;
pub use self::places::{Place, Places};
use crate::attention::{self, HeadShape, Params};
use crate::cpu::{self, Real};
#[cfg(feature = "cuda")]
use crate::cuda::decode_attention as gpu;
use crate::fresh::fresh;
use crate::gpu_sizes;
use crate::profile::{self, Op};
use crate::rehearsal::Rehearsal;
use crate::scratch::Scratch;
use crate::simd;

/// Keys that a task looks at.
const PIECE: usize = 512;
/// Elements of keys below which the pieces are not worth sharing out among threads.
const WORTH_SHARING: usize = 1 << 16;

/// Writes the newest token's keys or values, `new [R, K, D]`, into `cache [rows, K, capacity, D]`:
/// row `i` of `new` becomes token `places[i].len − 1` of its row.
pub fn store(cache: &Tensor, new: &Tensor, places: &Places) -> Result<()> {
    let _timer = profile::over(Op::AttentionForward, 0, &[new, new]);
    let shape = Shape::of(new, cache, places)?;
    match cpu::fast_dtype(&[cache, new]) {
        Some(DType::BF16) => store_cpu::<bf16>(cache, new, places.list(), shape),
        Some(_) => store_cpu::<f32>(cache, new, places.list(), shape),
        #[cfg(feature = "cuda")]
        None if gpu::takes(shape.dim, &[cache, new]) => gpu::store(cache, new, places),
        None => {
            for (i, place) in places.fixed()?.iter().enumerate() {
                let token = new.narrow(0, i, 1)?.unsqueeze(2)?.contiguous()?;
                cache.narrow(0, place.row, 1)?.slice_set(&token, 2, place.len - 1)?;
            }
            Ok(())
        }
    }
}

fn store_cpu<T: Real>(cache: &Tensor, new: &Tensor, places: &[Place], shape: Shape) -> Result<()> {
    let Shape { kv_heads, capacity, dim, .. } = shape;
    cpu::with([new], |[new]: [&[T]; 1]| {
        cpu::update(cache, |cache: &mut [T]| {
            for (place, new) in places.iter().zip(new.chunks_exact(kv_heads * dim)) {
                for (head, new) in new.chunks_exact(dim).enumerate() {
                    let at = (place.row * kv_heads + head) * capacity + place.len - 1;
                    cache[at * dim..][..dim].copy_from_slice(new);
                }
            }
            Ok(())
        })
    })
}

/// `q [R, H, D]`, `keys` and `values` `[rows, K, capacity, D]` → `[R, H, D]`: row `i` attends to
/// the tokens of `places[i]`, of which it is the last. Query head `h` reads key/value head
/// `h · K / H`.
pub fn forward(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    places: &Places,
    params: Params,
) -> Result<Tensor> {
    let _timer = profile::over(Op::AttentionForward, 0, &[q, q]);
    let shape = Shape::of(q, keys, places)?;
    if keys.dims() != values.dims() {
        bail!("keys {:?} and values {:?}", keys.dims(), values.dims());
    }
    match cpu::fast_dtype(&[q, keys, values]) {
        Some(DType::BF16) => forward_cpu::<bf16>(q, keys, values, places.list(), shape, params),
        Some(_) => forward_cpu::<f32>(q, keys, values, places.list(), shape, params),
        #[cfg(feature = "cuda")]
        None if gpu::takes(shape.dim, &[q, keys, values]) && params.window != Some(0) => {
            gpu::forward(q, keys, values, places, params)
        }
        None => composed(q, keys, values, places.fixed()?, params),
    }
}

fn composed(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    places: &[Place],
    params: Params,
) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(places.len());
    for (i, place) in places.iter().enumerate() {
        let past = |cache: &Tensor| cache.get(place.row)?.narrow(1, 0, place.len)?.transpose(0, 1);
        let (k, v) = (past(keys)?, past(values)?);
        rows.push(attention::forward_from(&q.narrow(0, i, 1)?, &k, &v, place.len - 1, params)?);
    }
    Tensor::cat(&rows, 0)
}

/// Takes the buffers of [`forward`] for one token each of texts of `lens` tokens, and gives them
/// back.
pub fn rehearse(
    pool: &mut Rehearsal,
    [heads, kv_heads, dim]: HeadShape,
    lens: &[usize],
    window: Option<usize>,
) {
    if pool.is_of_gpu() {
        let bytes = gpu_sizes::decode_attention([heads, kv_heads, dim], lens, window);
        return pool.pass(|passing| &mut passing.decode, bytes);
    }
    let places: Vec<Place> =
        lens.iter().enumerate().map(|(row, len)| Place { row, len: *len }).collect();
    let shape = Shape { heads, kv_heads, capacity: 0, dim };
    let pieces = pieces(&places, kv_heads, window).len();
    let partials = pool.take::<f32>(pieces * shape.partial());
    pool.give(partials);
}

#[derive(Clone, Copy)]
struct Shape {
    /// Heads of the new tokens; for keys and values, the same as `kv_heads`.
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    dim: usize,
}

impl Shape {
    fn of(new: &Tensor, cache: &Tensor, places: &Places) -> Result<Self> {
        let places = places.list();
        let (tokens, heads, dim) = new.dims3()?;
        let (rows, kv_heads, capacity, width) = cache.dims4()?;
        if dim != width || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("tokens {:?} and a cache {:?}", new.dims(), cache.dims());
        }
        let inside = |place: &Place| place.row < rows && (1..=capacity).contains(&place.len);
        if tokens != places.len() || tokens == 0 || !places.iter().all(inside) {
            bail!("{tokens} tokens at {places:?} of a cache {:?}", cache.dims());
        }
        Ok(Self { heads, kv_heads, capacity, dim })
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers of a piece's result: for each query head of the group its largest score, the sum of
    /// the exponentials, and the weighted sum of values.
    fn partial(self) -> usize {
        self.group() * (self.dim + 2)
    }
}

/// Keys `first ..` of key/value head `head` for token `token` of the batch.
struct Piece {
    token: usize,
    head: usize,
    first: usize,
    keys: usize,
}

fn pieces(places: &[Place], kv_heads: usize, window: Option<usize>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (token, place) in places.iter().enumerate() {
        let start = window.map_or(0, |window| place.len.saturating_sub(window.max(1)));
        for head in 0..kv_heads {
            pieces.extend((start..place.len).step_by(PIECE).map(|first| {
                let keys = PIECE.min(place.len - first);
                Piece { token, head, first, keys }
            }));
        }
    }
    pieces
}

fn forward_cpu<T: Real>(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    places: &[Place],
    shape: Shape,
    params: Params,
) -> Result<Tensor> {
    let Shape { heads, kv_heads, capacity, dim } = shape;
    let group = shape.group() * dim;
    let pieces = pieces(places, kv_heads, params.window);
    let work: usize = pieces.iter().map(|piece| piece.keys * dim).sum();
    cpu::with([q, keys, values], |[q, keys, values]: [&[T]; 3]| {
        let mut partials = Scratch::<f32>::new(pieces.len() * shape.partial());
        let task = |scores: &mut Vec<f32>, (piece, partial): (&Piece, &mut [f32])| {
            let at = (places[piece.token].row * kv_heads + piece.head) * capacity + piece.first;
            let past = at * dim..(at + piece.keys) * dim;
            let q = &q[(piece.token * kv_heads + piece.head) * group..][..group];
            scores.resize(piece.keys, 0.0);
            let (keys, values) = (&keys[past.clone()], &values[past]);
            simd::dispatch(Attend { q, keys, values, dim, params, scores, partial });
        };
        if work < WORTH_SHARING {
            let mut scores = Vec::new();
            let partials = partials.chunks_exact_mut(shape.partial());
            pieces.iter().zip(partials).for_each(|one| task(&mut scores, one));
        } else {
            let partials = partials.par_chunks_exact_mut(shape.partial());
            pieces.par_iter().zip(partials).for_each_init(Vec::new, task);
        }
        let mut out = fresh::<T>(places.len() * heads * dim)?;
        merge(&pieces, &partials, shape, &mut out);
        cpu::tensor(out, (places.len(), heads, dim))
    })
}

/// Puts the pieces of each token and head together: pieces of one stand next to each other.
fn merge<T: Real>(pieces: &[Piece], partials: &[f32], shape: Shape, out: &mut [T]) {
    let (dim, group) = (shape.dim, shape.group());
    let (mut from, mut sums) = (0, vec![0f32; dim + 1]);
    for same in pieces.chunk_by(|a, b| (a.token, a.head) == (b.token, b.head)) {
        let partials = &partials[from * shape.partial()..][..same.len() * shape.partial()];
        from += same.len();
        let heads = (same[0].token * shape.kv_heads + same[0].head) * group;
        for g in 0..group {
            sums.fill(0.0);
            let of_head = || {
                let of_piece = |piece: &'_ [f32]| piece[g * (dim + 2)];
                partials.chunks_exact(shape.partial()).map(of_piece)
            };
            let max = of_head().fold(f32::NEG_INFINITY, f32::max);
            for piece in partials.chunks_exact(shape.partial()) {
                let piece = &piece[g * (dim + 2)..][..dim + 2];
                let factor = (piece[0] - max).exp();
                for (sum, part) in sums.iter_mut().zip(&piece[1..]) {
                    *sum += factor * part;
                }
            }
            let inverse = 1.0 / sums[0];
            for (out, sum) in out[(heads + g) * dim..][..dim].iter_mut().zip(&sums[1..]) {
                *out = T::narrow(sum * inverse);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::Device;
    use proptest::prelude::*;

    /// A cache of 3 rows in f64, a new token for each place, and what the tokens attend to.
    struct Case {
        q: Tensor,
        caches: [Tensor; 2],
        places: Vec<Place>,
    }

    fn case(heads: usize, kv_heads: usize, dim: usize, lens: [usize; 2]) -> Result<Case> {
        let capacity = lens[0].max(lens[1]) + 3;
        let cache = [3, kv_heads, capacity, dim];
        let mut x = check::random(&[&[2, heads, dim], &cache, &cache], DType::F64)?;
        let places = vec![Place { row: 2, len: lens[0] }, Place { row: 0, len: lens[1] }];
        let (values, keys) = (x.remove(2), x.remove(1));
        Ok(Case { q: (x.remove(0) * 2.0)?, caches: [(keys * 3.0)?, values], places })
    }

    fn on_cpu(places: &[Place]) -> Result<Places> {
        Places::new(places.to_vec(), &Device::Cpu)
    }

    impl Case {
        fn run(&self, dtype: DType, params: Params) -> Result<Tensor> {
            let [q, k, v] = [&self.q, &self.caches[0], &self.caches[1]]
                .map(|tensor| tensor.to_dtype(DType::BF16)?.to_dtype(dtype));
            forward(&q?, &k?, &v?, &on_cpu(&self.places)?, params)
        }

        fn check(&self, params: Params) -> Result<()> {
            let expected = self.run(DType::F64, params)?;
            check::close(&expected, &self.run(DType::F32, params)?, 1e-5)?;
            check::close(&expected, &self.run(DType::BF16, params)?, 5e-3)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_fast_path_is_the_composed_one(
            kv_heads in 1usize..4,
            group in 1usize..5,
            dim in prop_oneof![Just(3usize), Just(16), Just(24), Just(64)],
            lens in [1usize..1200, 1usize..70],
            window in prop_oneof![Just(None), (1usize..40).prop_map(Some)],
            softcap in prop_oneof![Just(None), Just(Some(3.0))],
        ) {
            let params = Params { scale: 0.3, softcap, window };
            case(kv_heads * group, kv_heads, dim, lens)?.check(params)?;
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_on_any_thread_count() -> Result<()> {
        let case = case(4, 2, 32, [1500, 700])?;
        let params = Params { scale: 0.2, softcap: None, window: None };
        let run = |threads, places: &[usize]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let part = |tensor: &Tensor| {
                let rows: Result<Vec<Tensor>> =
                    places.iter().map(|i| tensor.narrow(0, *i, 1)).collect();
                Tensor::cat(&rows?, 0)?.to_dtype(DType::BF16)
            };
            let caches = case.caches.each_ref().map(|cache| cache.to_dtype(DType::BF16));
            let [keys, values] = caches;
            let places: Vec<Place> = places.iter().map(|i| case.places[*i]).collect();
            let (q, places) = (part(&case.q)?, on_cpu(&places)?);
            let y =
                pool.expect("a pool").install(|| forward(&q, &keys?, &values?, &places, params));
            y?.flatten_all()?.to_vec1::<bf16>()
        };
        let both = run(1, &[0, 1])?;
        assert_eq!(both, run(3, &[0, 1])?);
        assert_eq!(both, [run(3, &[0])?, run(1, &[1])?].concat());
        Ok(())
    }

    #[test]
    fn new_tokens_are_stored_where_they_belong() -> Result<()> {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let cache = Tensor::zeros((2, 3, 4, 2), dtype, &Device::Cpu)?;
            let new = Tensor::arange(1f32, 13.0, &Device::Cpu)?.reshape((2, 3, 2))?;
            let places = [Place { row: 1, len: 4 }, Place { row: 0, len: 1 }];
            store(&cache, &new.to_dtype(dtype)?, &on_cpu(&places)?)?;
            let cache = cache.to_dtype(DType::F32)?;
            check::close(&cache.get(1)?.narrow(1, 3, 1)?.squeeze(1)?, &new.get(0)?, 0.0)?;
            check::close(&cache.get(0)?.narrow(1, 0, 1)?.squeeze(1)?, &new.get(1)?, 0.0)?;
            assert_eq!(cache.sum_all()?.to_scalar::<f32>()?, 78.0);
        }
        Ok(())
    }

    #[test]
    fn places_outside_of_the_cache_are_refused() -> Result<()> {
        let case = case(2, 1, 4, [5, 2])?;
        let params = Params { scale: 1.0, softcap: None, window: None };
        let [keys, values] = &case.caches;
        for bad in [Place { row: 3, len: 1 }, Place { row: 0, len: 0 }, Place { row: 0, len: 99 }] {
            let places = on_cpu(&[bad, case.places[1]])?;
            assert!(forward(&case.q, keys, values, &places, params).is_err(), "{bad:?}");
        }
        Ok(())
    }
}
