//! The head and the loss from candle's own ops, for dtypes and devices without kernels here; in
//! f64 the oracle of those that have them.

use candle_core::{D, DType, Result, Tensor};

use super::{Head, Losses, Trained};
use crate::{accumulation_dtype, linear};

/// Logits that exist at a time: 16 MiB in f32, of which a chunk holds three or four copies.
const CHUNK_ELEMENTS: usize = 4 << 20;

/// Tokens of a chunk.
pub(super) fn chunk_tokens(vocab: usize) -> usize {
    (CHUNK_ELEMENTS / vocab.max(1)).max(16)
}

/// The loss of each trained token.
pub(super) fn losses(head: &Head, trained: &Trained) -> Result<Losses> {
    let mut all = Losses::default();
    for chunk in chunks(head, trained)? {
        let rows = head.hidden.index_select(&chunk.rows, 0)?;
        let (logits, _) = capped_logits(&rows, head.weight, head.softcap)?;
        cross_entropy(&logits, &chunk, &mut all)?;
    }
    Ok(all)
}

/// The loss of each trained token, and the gradient of `hidden`; that of the head is added to
/// `d_head`.
pub(super) fn gradients(
    head: &Head,
    trained: &Trained,
    loss_scale: f64,
    d_head: Option<&Tensor>,
) -> Result<(Losses, Tensor)> {
    let mut all = Losses::default();
    let mut d_hidden = head.hidden.zeros_like()?;
    for chunk in chunks(head, trained)? {
        let rows = head.hidden.index_select(&chunk.rows, 0)?;
        let (logits, slope) = capped_logits(&rows, head.weight, head.softcap)?;
        let log_sum_exp = cross_entropy(&logits, &chunk, &mut all)?;
        let mut d_logits = d_cross_entropy(&logits, &log_sum_exp, &chunk, loss_scale)?;
        if let Some(slope) = slope {
            d_logits = (d_logits * slope)?;
        }
        let d_logits = d_logits.to_dtype(head.hidden.dtype())?;
        let d_rows = linear::backward_input(head.weight, &d_logits)?;
        d_hidden = d_hidden.index_add(&chunk.rows, &d_rows, 0)?;
        if let Some(d_head) = d_head {
            linear::add_weight_gradient(d_head, &rows, &d_logits)?;
        }
    }
    Ok((all, d_hidden))
}

/// Some of the trained tokens: their rows `[C]` and targets `[C]`, both u32.
struct Chunk {
    rows: Tensor,
    targets: Tensor,
}

fn chunks(head: &Head, trained: &Trained) -> Result<Vec<Chunk>> {
    let device = head.hidden.device();
    let tokens = chunk_tokens(head.weight.dim(0)?);
    let chunk = |(rows, targets): (&[u32], &[u32])| {
        Ok(Chunk {
            rows: Tensor::from_slice(rows, rows.len(), device)?,
            targets: Tensor::from_slice(targets, targets.len(), device)?,
        })
    };
    trained.rows.chunks(tokens).zip(trained.targets.chunks(tokens)).map(chunk).collect()
}

/// Logits `[C, V]` in f32 (f64 for f64), and the derivative of the soft-cap where there is one.
fn capped_logits(
    rows: &Tensor,
    head: &Tensor,
    softcap: Option<f64>,
) -> Result<(Tensor, Option<Tensor>)> {
    let logits = linear::forward(rows, head, None)?.to_dtype(accumulation_dtype(rows.dtype()))?;
    match softcap {
        None => Ok((logits, None)),
        Some(cap) => {
            let tanh = (logits / cap)?.tanh()?;
            let slope = (1.0 - tanh.sqr()?)?;
            Ok(((tanh * cap)?, Some(slope)))
        }
    }
}

/// Appends the chunk's losses to `all` and returns its log-sum-exp `[C, 1]`.
fn cross_entropy(logits: &Tensor, chunk: &Chunk, all: &mut Losses) -> Result<Tensor> {
    let max = logits.max_keepdim(D::Minus1)?;
    let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    let log_sum_exp = (sum.log()? + max)?;
    let target_logits = logits.gather(&chunk.targets.unsqueeze(1)?, 1)?;
    let losses = (&log_sum_exp - target_logits)?.squeeze(1)?.to_dtype(DType::F64)?;
    let hits = logits.argmax(D::Minus1)?.eq(&chunk.targets)?.to_vec1::<u8>()?;
    all.of_token.extend(losses.to_vec1::<f64>()?);
    all.num_correct += hits.iter().map(|hit| usize::from(*hit)).sum::<usize>();
    Ok(log_sum_exp)
}

/// `(softmax(logits) − onehot(target)) · loss_scale`.
fn d_cross_entropy(
    logits: &Tensor,
    log_sum_exp: &Tensor,
    chunk: &Chunk,
    loss_scale: f64,
) -> Result<Tensor> {
    let softmax = logits.broadcast_sub(log_sum_exp)?.exp()?;
    let index = chunk.targets.unsqueeze(1)?;
    let minus_one = log_sum_exp.ones_like()?.neg()?;
    softmax.scatter_add(&index, &minus_one, 1)? * loss_scale
}
