//! `kernels/cuda/cross_entropy.cu`.
#![expect(unsafe_code, reason = "launches kernels")]

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, address, arguments, empty, suffix};
use super::program::{Program, source};
use crate::device::to_host;

static PROGRAM: Program = source!("cross_entropy");

const THREADS: usize = 512;
/// Those of a block that puts together what is known of the pieces of a row.
const MERGE_THREADS: usize = 128;
/// Logits of a piece of a row from which the most probable is chosen. What is known of one is 12 bytes,
/// which like the 8 of a row's result are no matter for the plan beside the logits.
const PIECE: usize = 8192;

/// What is found of rows of logits; all of it lies on the device.
pub(crate) struct Rows<'a> {
    /// `[C, V]`, f32.
    pub(crate) logits: &'a Tensor,
    /// `[C]`, u32, each below V.
    pub(crate) targets: &'a Tensor,
    /// `[C]`, f32: is written.
    pub(crate) losses: &'a Tensor,
    /// `[C]`, u32, 1 where the target is the most likely: is written.
    pub(crate) hits: &'a Tensor,
    pub(crate) softcap: Option<f64>,
}

/// The most probable token of each row of `logits [C, V]`, f32, and its log-probability. Waits for the
/// device.
pub(crate) fn most_probable(logits: &Tensor) -> Result<Vec<(u32, f32)>> {
    let (rows, vocab) = logits.dims2()?;
    let logits = logits.contiguous()?;
    // Ids, then the bits of the log-probabilities: one copy brings both.
    let found = empty((2, rows), DType::U32, logits.device())?;
    let ids = address(&found)?;
    let pieces = vocab.div_ceil(PIECE);
    let of_pieces = empty((rows, pieces, 3), DType::U32, logits.device())?;
    let arguments = arguments![address(&logits)?, address(&of_pieces)?, vocab as u32];
    let piece =
        Launch { grid: [pieces, rows, 1], ..launch("most_probable_piece_f32".to_owned(), rows) };
    // SAFETY: there is a row of V logits for each row of blocks, and three words for each block.
    unsafe { piece.run(logits.device(), &arguments) }?;
    let arguments = arguments![address(&of_pieces)?, ids, ids + 4 * rows as u64, pieces as u32];
    let merge = Launch { block: MERGE_THREADS, ..launch("most_probable_merge".to_owned(), rows) };
    // SAFETY: all pieces were written by what went to the stream before, and there is a place in both
    // rows of `found` for each block.
    unsafe { merge.run(logits.device(), &arguments) }?;
    let found = to_host(&found.flatten_all()?)?.to_vec1::<u32>()?;
    let (ids, logprobs) = found.split_at(rows);
    Ok(ids.iter().zip(logprobs).map(|(id, bits)| (*id, f32::from_bits(*bits))).collect())
}

/// The sum of `losses [N]`, f32, and how many of `hits [N]`, u32, are 1: f64 `[2]`.
pub(crate) fn total(losses: &Tensor, hits: &Tensor) -> Result<Tensor> {
    let found = empty(2, DType::F64, losses.device())?;
    let arguments =
        arguments![address(losses)?, address(hits)?, losses.dim(0)? as u32, address(&found)?,];
    // SAFETY: there are as many hits as losses, and two numbers are written.
    unsafe { launch("cross_entropy_total".to_owned(), 1).run(losses.device(), &arguments) }?;
    Ok(found)
}

fn launch(kernel: String, rows: usize) -> Launch<'static> {
    let grid = [rows, 1, 1];
    Launch { program: &PROGRAM, kernel, head_dim: None, grid, block: THREADS, shared: 0 }
}

impl Rows<'_> {
    fn launch(&self, kernel: String) -> Result<Launch<'static>> {
        Ok(launch(kernel, self.logits.dim(0)?))
    }

    /// Losses and hits.
    pub(crate) fn losses(&self) -> Result<()> {
        let vocab = self.logits.dim(1)?;
        let arguments = arguments![
            address(self.logits)?,
            address(self.targets)?,
            address(self.losses)?,
            address(self.hits)?,
            vocab as u32,
            vocab as u64,
            self.softcap.unwrap_or(0.0) as f32,
        ];
        let launch = self.launch("cross_entropy_forward_f32".to_owned())?;
        // SAFETY: there is a row of V logits, a target, a loss and a hit for each block.
        unsafe { launch.run(self.logits.device(), &arguments) }
    }

    /// Losses, hits, and over the logits their gradient times `scale`, in `dtype`: bf16 begins where
    /// the f32 of its row did.
    pub(crate) fn gradients(&self, scale: f64, dtype: DType) -> Result<()> {
        let vocab = self.logits.dim(1)?;
        let stride = if dtype == DType::BF16 { 2 * vocab } else { vocab };
        let arguments = arguments![
            address(self.logits)?,
            address(self.targets)?,
            address(self.logits)?,
            address(self.losses)?,
            address(self.hits)?,
            vocab as u32,
            vocab as u64,
            stride as u64,
            self.softcap.unwrap_or(0.0) as f32,
            scale as f32,
        ];
        let launch = self.launch(format!("cross_entropy_gradient_f32_{}", suffix(dtype)))?;
        // SAFETY: as for `losses`; a row of the gradient lies within the row of logits.
        unsafe { launch.run(self.logits.device(), &arguments) }
    }
}
