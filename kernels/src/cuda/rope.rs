//! `kernels/cuda/rope.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{Result, Tensor};

use super::launch::{Launch, WARP, address, arguments, empty, suffix};
use super::program::{Program, source};

static PROGRAM: Program = source!("rope");

/// Heads side by side for each token, the tokens wherever their stride has them.
pub(super) struct Heads {
    pub(super) tensor: Tensor,
    /// Elements from token to token.
    pub(super) stride: u64,
}

impl Heads {
    pub(super) fn of(x: &Tensor) -> Result<Self> {
        let (_, heads, head_dim) = x.dims3()?;
        let fits = x.stride()[1..] == [head_dim, 1] || (heads == 1 && x.stride()[2] == 1);
        let tensor = if fits { x.clone() } else { x.contiguous()? };
        let stride = tensor.stride()[0] as u64;
        Ok(Self { tensor, stride })
    }
}

/// `x [N, H, D]`, turned by the angles times `direction`, which is 1 or -1.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f32) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    let (cos, sin, x) = (cos.contiguous()?, sin.contiguous()?, Heads::of(x)?);
    let y = empty(x.tensor.dims(), x.tensor.dtype(), x.tensor.device())?;
    let lanes = heads * head_dim / 2 * x.tensor.dtype().size_in_bytes();
    let launch = Launch {
        program: &PROGRAM,
        kernel: format!("rope_rotate_{}", suffix(x.tensor.dtype())),
        head_dim: None,
        grid: [tokens, 1, 1],
        block: lanes.div_ceil(16).next_multiple_of(WARP).clamp(WARP, 256),
        shared: 0,
    };
    let arguments = arguments![
        address(&x.tensor)?,
        address(&cos)?,
        address(&sin)?,
        address(&y)?,
        heads as u32,
        head_dim as u32,
        x.stride,
        (heads * head_dim) as u64,
        direction,
    ];
    // SAFETY: x has tokens a stride apart, y side by side, and there is an angle for each.
    unsafe { launch.run(y.device(), &arguments) }?;
    Ok(y)
}
