//! Both passes against the crate's composition in f64 over the same inputs.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use chandler_kernels::attention::{self, Params};

use crate::buffer::Buffer;
use crate::compare::{DTYPES, random, suffix};
use crate::emulator::{Launch, Program, program_for};

const PLAIN: Params = Params { scale: 0.3, softcap: None, window: None };

/// Heads of queries, of keys and values, and their dimension.
#[derive(Debug, Clone, Copy)]
struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
}

/// How many rows of a head a block has room for.
struct Sizes {
    rows: usize,
    others: usize,
}

impl Heads {
    fn row_bytes(self, dtype: DType) -> usize {
        self.dim * dtype.size_in_bytes()
    }

    fn of_forward(self, dtype: DType) -> Sizes {
        match self.row_bytes(dtype) {
            ..=256 => Sizes { rows: 128, others: 32 },
            257..=512 => Sizes { rows: 128, others: 16 },
            _ => Sizes { rows: 32, others: 16 },
        }
    }

    fn of_backward(self, dtype: DType) -> Sizes {
        match self.row_bytes(dtype) {
            ..=256 => Sizes { rows: 64, others: 32 },
            257..=512 => Sizes { rows: 64, others: 16 },
            _ => Sizes { rows: 16, others: 16 },
        }
    }
}

/// Start, length and first row of each tile, the longest first.
fn tiles(cu_seqlens: &[u32], rows: usize) -> Vec<[u32; 3]> {
    let of = |pair: &[u32]| {
        let (start, len) = (pair[0], pair[1] - pair[0]);
        (0..len).step_by(rows).map(move |first| [start, len, first])
    };
    let mut tiles: Vec<[u32; 3]> = cu_seqlens.windows(2).flat_map(of).collect();
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
    tiles
}

/// Where queries, keys and values lie, in elements.
struct Layout {
    q_stride: usize,
    kv_stride: usize,
    kv_head_stride: usize,
    query_offset: usize,
}

/// `Shape` of the sources.
fn shape(heads: Heads, layout: &Layout, params: Params) -> [u64; 6] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let window = params.window.map_or(u32::MAX, |window| window as u32);
    [
        pair(heads.q as u32, heads.kv as u32),
        layout.q_stride as u64,
        layout.kv_stride as u64,
        layout.kv_head_stride as u64,
        pair(layout.query_offset as u32, window),
        pair((params.scale as f32).to_bits(), (params.softcap.unwrap_or(0.0) as f32).to_bits()),
    ]
}

/// Queries, keys and values of a token next to each other, as one product gives them.
struct Joined<'a> {
    buffer: &'a Buffer,
    heads: Heads,
    dtype: DType,
}

impl<'a> Joined<'a> {
    fn layout(&self) -> Layout {
        let Heads { q, kv, dim } = self.heads;
        let stride = (q + 2 * kv) * dim;
        Layout { q_stride: stride, kv_stride: stride, kv_head_stride: dim, query_offset: 0 }
    }

    fn give(&self, launch: Launch<'a>) -> Launch<'a> {
        let Heads { q, kv, dim } = self.heads;
        let bytes = dim * self.dtype.size_in_bytes();
        let launch = launch.buffer(self.buffer).buffer_from(self.buffer, q * bytes);
        launch.buffer_from(self.buffer, (q + kv) * bytes)
    }
}

struct Case {
    forward: Arc<Program>,
    backward: Arc<Program>,
    heads: Heads,
    cu_seqlens: Vec<u32>,
    params: Params,
    /// q, k, v and dy.
    inputs: Vec<Tensor>,
}

impl Case {
    fn new(heads: Heads, cu_seqlens: &[u32], params: Params, dtype: DType) -> Result<Option<Self>> {
        let programs =
            ["attention_forward", "attention_backward"].map(|name| program_for(name, heads.dim));
        let [Some(forward), Some(backward)] = programs else { return Ok(None) };
        let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
        let of = |heads_of| [tokens, heads_of, heads.dim];
        let inputs = random(&[&of(heads.q), &of(heads.kv), &of(heads.kv), &of(heads.q)], dtype)?;
        let cu_seqlens = cu_seqlens.to_vec();
        Ok(Some(Self { forward, backward, heads, cu_seqlens, params, inputs }))
    }

    fn dtype(&self) -> DType {
        self.inputs[0].dtype()
    }

    fn tokens(&self) -> usize {
        self.cu_seqlens[self.cu_seqlens.len() - 1] as usize
    }

    fn shared_bytes(&self, rows: usize) -> usize {
        rows * (self.heads.row_bytes(self.dtype()) + 16)
    }

    fn joined(&self) -> Result<Buffer> {
        Buffer::of_tensor(&Tensor::cat(&self.inputs[..3], 1)?)
    }

    /// The output and the log-sum-exps.
    fn run_forward(&self, qkv: &Joined) -> (Buffer, Buffer) {
        let (dtype, Heads { q, dim, .. }) = (self.dtype(), self.heads);
        let sizes = self.heads.of_forward(dtype);
        let tiles = tiles(&self.cu_seqlens, sizes.rows);
        let list = Buffer::of(&tiles);
        let y = Buffer::unset_of(self.tokens() * q * dim, dtype);
        let lse = Buffer::unset::<f32>(q * self.tokens());
        let kernel = format!("attention_forward_{}", suffix(dtype));
        let launch = self.forward.launch(&kernel, [tiles.len(), q, 1], 2 * sizes.rows);
        qkv.give(launch.shared(self.shared_bytes(sizes.rows + 4 * sizes.others)))
            .buffer(&list)
            .buffer(&y)
            .buffer(&lse)
            .value(shape(self.heads, &qkv.layout(), self.params))
            .run();
        (y, lse)
    }

    fn run_delta(&self, dy: &Buffer, y: &Buffer) -> Buffer {
        let rows = self.tokens() * self.heads.q;
        let delta = Buffer::unset::<f32>(rows);
        let kernel = format!("attention_delta_{}", suffix(self.dtype()));
        let launch = self.backward.launch(&kernel, [rows.div_ceil(32), 1, 1], 256);
        let launch = launch.buffer(dy).buffer(y).buffer(&delta);
        launch.value(rows as u64).run();
        delta
    }

    /// Output and gradients.
    fn run(&self) -> Result<Vec<Tensor>> {
        let (dtype, Heads { q, kv, dim }) = (self.dtype(), self.heads);
        let (tokens, buffer) = (self.tokens(), self.joined()?);
        let qkv = Joined { buffer: &buffer, heads: self.heads, dtype };
        let (y, lse) = self.run_forward(&qkv);
        let dy = Buffer::of_tensor(&self.inputs[3])?;
        let delta = self.run_delta(&dy, &y);

        let sizes = self.heads.of_backward(dtype);
        let tiles = tiles(&self.cu_seqlens, sizes.rows);
        let list = Buffer::of(&tiles);
        let shape = shape(self.heads, &qkv.layout(), self.params);
        let [dq, dk, dv] = [q, kv, kv].map(|heads| Buffer::unset_of(tokens * heads * dim, dtype));
        let parts = if dim > 128 { 2 } else { 1 };
        for (name, grid, outputs) in [
            ("q", [tiles.len(), q, 1], vec![&dq]),
            ("kv", [tiles.len(), kv, parts], vec![&dk, &dv]),
        ] {
            let kernel = format!("attention_backward_{name}_{}", suffix(dtype));
            let launch = self.backward.launch(&kernel, grid, 2 * sizes.rows);
            let launch = launch.shared(self.shared_bytes(2 * sizes.rows + 4 * sizes.others));
            let launch = qkv.give(launch).buffer(&dy).buffer(&lse).buffer(&delta).buffer(&list);
            let launch = outputs.into_iter().fold(launch, Launch::buffer);
            launch.value(shape).run();
        }
        let of = |buffer: &Buffer, heads| buffer.tensor(&[tokens, heads, dim], dtype);
        Ok(vec![of(&y, q)?, of(&dq, q)?, of(&dk, kv)?, of(&dv, kv)?])
    }

    /// The same by the crate, in f64.
    fn exact(&self) -> Result<Vec<Tensor>> {
        let wide: Vec<Tensor> =
            self.inputs.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
        let [q, k, v, dy] = [&wide[0], &wide[1], &wide[2], &wide[3]];
        let y = attention::forward(q, k, v, &self.cu_seqlens, self.params)?;
        let [dq, dk, dv] = attention::backward(q, k, v, &self.cu_seqlens, self.params, dy)?;
        Ok(vec![y, dq, dk, dv])
    }
}

/// Relative to the largest value. In f32 sums are of other orders; in bf16, probabilities and their
/// gradients are rounded between the products, and the output before its products with the output's
/// gradient are summed.
fn close(got: &Tensor, exact: &Tensor, what: &str) -> Result<()> {
    let bound = if got.dtype() == DType::BF16 { 1e-2 } else { 1e-5 };
    let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
    let error = largest(&(got.to_dtype(DType::F64)? - exact)?)? / largest(exact)?.max(0.1);
    assert!(error < bound, "{what}: {error:e}");
    Ok(())
}

fn agrees(heads: Heads, cu_seqlens: &[u32], params: Params) -> Result<()> {
    for dtype in DTYPES {
        let Some(case) = Case::new(heads, cu_seqlens, params, dtype)? else { return Ok(()) };
        let names = ["y", "dq", "dk", "dv"];
        for (name, (got, exact)) in names.iter().zip(case.run()?.iter().zip(&case.exact()?)) {
            let what = format!("{name} of {dtype:?} {heads:?} {cu_seqlens:?} {params:?}");
            close(got, exact, &what)?;
        }
    }
    Ok(())
}

#[test]
fn heads_of_64() -> Result<()> {
    let heads = Heads { q: 2, kv: 1, dim: 64 };
    agrees(Heads { q: 3, kv: 3, dim: 64 }, &[0, 64, 129], PLAIN)?;
    agrees(heads, &[0, 1], PLAIN)?;
    agrees(heads, &[0, 70, 70, 71, 200], PLAIN)?;
    agrees(heads, &[0, 150], Params { window: Some(1), ..PLAIN })?;
    agrees(heads, &[0, 150, 190], Params { window: Some(40), ..PLAIN })?;
    agrees(heads, &[0, 90], Params { softcap: Some(1.5), window: Some(65), ..PLAIN })
}

#[test]
fn heads_of_80() -> Result<()> {
    agrees(Heads { q: 2, kv: 1, dim: 80 }, &[0, 30, 100], PLAIN)
}

#[test]
fn heads_of_128() -> Result<()> {
    agrees(Heads { q: 4, kv: 2, dim: 128 }, &[0, 5, 100], Params { scale: 0.09, ..PLAIN })
}

#[test]
fn heads_of_256() -> Result<()> {
    let params = Params { scale: 0.06, softcap: Some(5.0), window: Some(30) };
    agrees(Heads { q: 2, kv: 1, dim: 256 }, &[0, 70], params)
}

/// A host that has the sizes of blocks wrong must not get wrong numbers.
#[test]
fn blocks_of_another_size_are_refused() {
    let Some(program) = program_for("attention_forward", 64) else { return };
    let list = Buffer::of(&[[0u32, 1, 0]]);
    let values = Buffer::unset_of(64, DType::BF16);
    let lse = Buffer::unset::<f32>(1);
    let layout = Layout { q_stride: 64, kv_stride: 64, kv_head_stride: 64, query_offset: 0 };
    let launch = program.launch("attention_forward_bf16", [1; 3], 64).shared(40_000);
    let launch = launch.buffer(&values).buffer(&values).buffer(&values).buffer(&list);
    let launch = launch.buffer(&values).buffer(&lse);
    let one = Heads { q: 1, kv: 1, dim: 64 };
    let fault = launch.value(shape(one, &layout, PLAIN)).run_once(0).expect_err("a fault");
    assert_eq!(fault, "attention_forward_bf16: a kernel gave up");
}

/// `ln Σ exp(score)` of each row of one document without a window, `[N, H]`.
fn log_sum_exps(q: &Tensor, k: &Tensor, scale: f64) -> Result<Vec<f64>> {
    let (tokens, heads, _) = q.dims3()?;
    let group = heads / k.dim(1)?;
    let mut all = vec![0.0; tokens * heads];
    for head in 0..heads {
        let of = |x: &Tensor, head| x.narrow(1, head, 1)?.squeeze(1)?.to_dtype(DType::F64);
        let scores =
            (of(q, head)?.matmul(&of(k, head / group)?.t()?)? * scale)?.to_vec2::<f64>()?;
        for (i, row) in scores.iter().enumerate() {
            all[i * heads + head] = row[..=i].iter().map(|s| s.exp()).sum::<f64>().ln();
        }
    }
    Ok(all)
}

#[test]
fn the_sums_that_the_backward_pass_needs() -> Result<()> {
    for dtype in DTYPES {
        let heads = Heads { q: 4, kv: 2, dim: 64 };
        let Some(case) = Case::new(heads, &[0, 100], PLAIN, dtype)? else { return Ok(()) };
        let buffer = case.joined()?;
        let (_, lse) = case.run_forward(&Joined { buffer: &buffer, heads, dtype });
        let exact = log_sum_exps(&case.inputs[0], &case.inputs[1], PLAIN.scale)?;
        for (got, exact) in lse.values::<f32>().into_iter().zip(exact) {
            assert!((f64::from(got) - exact).abs() < 4e-6, "{got}, not {exact}");
        }
    }
    Ok(())
}

/// New tokens over the keys of a cache, which lie head by head.
fn agrees_at_an_offset(heads: Heads, queries: usize, offset: usize, params: Params) -> Result<()> {
    let Heads { q, kv, dim } = heads;
    let (keys, capacity) = (offset + queries, offset + queries + 3);
    for dtype in DTYPES {
        let Some(program) = program_for("attention_forward", dim) else { return Ok(()) };
        let inputs =
            random(&[&[queries, q, dim], &[kv, capacity, dim], &[kv, capacity, dim]], dtype)?;
        let buffers: Vec<Buffer> = inputs.iter().map(Buffer::of_tensor).collect::<Result<_>>()?;
        let sizes = heads.of_forward(dtype);
        let tiles = tiles(&[0, queries as u32], sizes.rows);
        let list = Buffer::of(&tiles);
        let y = Buffer::unset_of(queries * q * dim, dtype);
        let lse = Buffer::unset::<f32>(queries * q);
        let layout = Layout {
            q_stride: q * dim,
            kv_stride: dim,
            kv_head_stride: capacity * dim,
            query_offset: offset,
        };
        let kernel = format!("attention_forward_{}", suffix(dtype));
        let launch = program.launch(&kernel, [tiles.len(), q, 1], 2 * sizes.rows);
        let bytes = (sizes.rows + 4 * sizes.others) * (heads.row_bytes(dtype) + 16);
        let launch = buffers.iter().fold(launch.shared(bytes), Launch::buffer);
        let launch = launch.buffer(&list).buffer(&y).buffer(&lse);
        launch.value(shape(heads, &layout, params)).run();
        let wide = |x: &Tensor| x.to_dtype(DType::F64);
        let tokens_first = |x: &Tensor| wide(x)?.transpose(0, 1)?.narrow(0, 0, keys);
        let (k, v) = (tokens_first(&inputs[1])?, tokens_first(&inputs[2])?);
        let exact = attention::forward_from(&wide(&inputs[0])?, &k, &v, offset, params)?;
        let what = format!("{dtype:?} {heads:?} {queries} {offset} {params:?}");
        close(&y.tensor(&[queries, q, dim], dtype)?, &exact, &what)?;
    }
    Ok(())
}

#[test]
fn queries_after_others() -> Result<()> {
    let heads = Heads { q: 4, kv: 2, dim: 64 };
    agrees_at_an_offset(heads, 1, 0, PLAIN)?;
    agrees_at_an_offset(heads, 70, 100, PLAIN)?;
    agrees_at_an_offset(heads, 3, 150, Params { window: Some(20), ..PLAIN })
}
