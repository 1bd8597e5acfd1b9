//! `kernels/cuda/decode_attention.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, address, arguments, empty, on_gpu, suffix};
use super::program::{Program, source};
use crate::attention::Params;
use crate::decode_attention::Places;
use crate::gpu_sizes::DECODE_PIECE;

static PROGRAM: Program = source!("decode_attention");

/// Of a block that has a piece.
const PIECE_THREADS: usize = 256;
/// Of any other block.
const THREADS: usize = 128;
/// Query heads that go through a piece together, at most.
const MOST_TOGETHER: usize = 8;

/// `Shape` of the source.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: u32,
    kv_heads: u32,
    capacity: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    pieces: u32,
}

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for Shape {}

/// Whether the kernels take heads of this dimension in these tensors.
pub(crate) fn takes(dim: usize, tensors: &[&Tensor]) -> bool {
    dim.is_multiple_of(8) && (8..=512).contains(&dim) && on_gpu(tensors)
}

fn shape(cache: &Tensor, heads: usize) -> Result<Shape> {
    let (_, kv_heads, capacity, _) = cache.dims4()?;
    Ok(Shape {
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        capacity: capacity as u32,
        window: u32::MAX,
        scale: 1.0,
        softcap: 0.0,
        pieces: 0,
    })
}

/// A kernel for heads of `dim`, whose name ends so.
fn launch(name: &str, dim: usize, grid: [usize; 3], block: usize) -> Launch<'static> {
    let kernel = format!("decode_attention_{name}");
    Launch { program: &PROGRAM, kernel, head_dim: Some(dim), grid, block, shared: 0 }
}

/// As [`crate::decode_attention::store`].
pub(crate) fn store(cache: &Tensor, new: &Tensor, places: &Places) -> Result<()> {
    let (tokens, kv_heads, dim) = new.dims3()?;
    let (new, where_to) = (new.contiguous()?, address(places.on(cache.device())?)?);
    let arguments = arguments![address(cache)?, address(&new)?, where_to, shape(cache, kv_heads)?];
    let kernel = format!("store_{}", suffix(cache.dtype()));
    let launch = launch(&kernel, dim, [kv_heads, tokens, 1], THREADS);
    // SAFETY: each place is a row of the cache and a token within its capacity, which was checked.
    unsafe { launch.run(cache.device(), &arguments) }
}

/// As [`crate::decode_attention::forward`].
pub(crate) fn forward(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    places: &Places,
    params: Params,
) -> Result<Tensor> {
    let (tokens, heads, dim) = q.dims3()?;
    let (dtype, device) = (q.dtype(), q.device());
    let longest = places.reach().min(params.window.unwrap_or(usize::MAX));
    let pieces = longest.div_ceil(DECODE_PIECE);
    let shape = Shape {
        window: params.window.map_or(u32::MAX, |window| window as u32),
        scale: params.scale as f32,
        softcap: params.softcap.unwrap_or(0.0) as f32,
        pieces: pieces as u32,
        ..shape(keys, heads)?
    };
    let (q, where_from) = (q.contiguous()?, address(places.on(device)?)?);
    let partial = empty((tokens, heads, pieces, dim + 2), DType::F32, device)?;
    let y = empty((tokens, heads, dim), dtype, device)?;
    let kv_heads = keys.dim(1)?;
    let of_pieces = arguments![
        address(&q)?,
        address(keys)?,
        address(values)?,
        where_from,
        address(&partial)?,
        shape,
    ];
    let group = heads / kv_heads;
    let together = group.next_power_of_two().min(MOST_TOGETHER);
    let kernel = format!("piece_{}_{together}", suffix(dtype));
    let grid = [pieces, kv_heads * group.div_ceil(together), tokens];
    let pieces = launch(&kernel, dim, grid, PIECE_THREADS);
    // SAFETY: each place is a row of the caches and a length within their capacity, which was checked.
    unsafe { pieces.run(device, &of_pieces) }?;
    let merged = arguments![address(&partial)?, where_from, address(&y)?, shape];
    let merge = launch(&format!("merge_{}", suffix(dtype)), dim, [heads, tokens, 1], THREADS);
    // SAFETY: all pieces were written by what went to the stream before.
    unsafe { merge.run(device, &merged) }?;
    Ok(y)
}
