//! The head and the loss in one: `cross_entropy(softcap(hidden · headᵀ), targets)`, chunked over
//! tokens so that the logits of the whole batch never exist.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{accumulation_dtype, linear};

/// The target that takes no part in the loss, as in PyTorch.
pub const IGNORE_INDEX: i64 = -100;

/// Logits that exist at a time: 16 MiB in f32, of which a chunk holds three or four copies.
const CHUNK_ELEMENTS: usize = 4 << 20;

/// What [`forward`] and [`forward_backward`] report of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Sum of the cross entropy over the trained tokens, in nats.
    pub loss_sum: f64,
    /// Tokens whose target is not [`IGNORE_INDEX`].
    pub num_targets: usize,
    /// Of those, how many the most likely token names.
    pub num_correct: usize,
}

/// The gradients of [`forward_backward`].
#[derive(Debug)]
pub struct Gradients {
    /// `[N, E]`, in the dtype of `hidden`; rows without a target are zero.
    pub hidden: Tensor,
    /// `[V, E]`, f32 (f64 for f64), where asked for.
    pub head: Option<Tensor>,
}

/// Loss without gradients: `hidden [N, E]`, `head [V, E]`, `targets` N class indices.
pub fn forward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
) -> Result<Score> {
    let mut score = Score::default();
    for chunk in chunks(hidden, head, targets)? {
        let (logits, _) = capped_logits(&hidden.index_select(&chunk.rows, 0)?, head, softcap)?;
        score.add(cross_entropy(&logits, &chunk)?.0);
    }
    Ok(score)
}

/// Loss and gradients in one pass. The gradients are those of `loss_sum · loss_scale`.
pub fn forward_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
    loss_scale: f64,
    wants_head: bool,
) -> Result<(Score, Gradients)> {
    let wide = accumulation_dtype(head.dtype());
    let mut score = Score::default();
    let mut d_hidden = hidden.zeros_like()?;
    let mut d_head: Option<Tensor> = None;
    for chunk in chunks(hidden, head, targets)? {
        let rows = hidden.index_select(&chunk.rows, 0)?;
        let (logits, slope) = capped_logits(&rows, head, softcap)?;
        let (chunk_score, log_sum_exp) = cross_entropy(&logits, &chunk)?;
        score.add(chunk_score);
        let mut d_logits = d_cross_entropy(&logits, &log_sum_exp, &chunk, loss_scale)?;
        if let Some(slope) = slope {
            d_logits = (d_logits * slope)?;
        }
        let d_logits = d_logits.to_dtype(hidden.dtype())?;
        let d_rows = linear::backward_input(head, &d_logits)?;
        d_hidden = d_hidden.index_add(&chunk.rows, &d_rows, 0)?;
        if wants_head {
            let d = linear::backward_weight(&rows, &d_logits)?;
            d_head = Some(match d_head {
                Some(sum) => (sum + d)?,
                None => d,
            });
        }
    }
    if wants_head && d_head.is_none() {
        d_head = Some(Tensor::zeros(head.shape(), wide, head.device())?);
    }
    Ok((score, Gradients { hidden: d_hidden, head: d_head }))
}

/// Log-probability of each target under the logits, `targets.len()` values; 0 for
/// [`IGNORE_INDEX`].
pub fn log_probs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
) -> Result<Vec<f64>> {
    let mut all = vec![0.0; targets.len()];
    for chunk in chunks(hidden, head, targets)? {
        let (logits, _) = capped_logits(&hidden.index_select(&chunk.rows, 0)?, head, softcap)?;
        let (losses, _) = losses(&logits, &chunk)?;
        let rows = chunk.rows.to_vec1::<u32>()?;
        for (row, loss) in rows.into_iter().zip(losses.to_vec1::<f64>()?) {
            all[row as usize] = -loss;
        }
    }
    Ok(all)
}

impl Score {
    /// Adds another batch's score to this one.
    pub fn add(&mut self, other: Score) {
        self.loss_sum += other.loss_sum;
        self.num_targets += other.num_targets;
        self.num_correct += other.num_correct;
    }
}

/// Some of the tokens that have a target: their rows `[C]` and targets `[C]`, both u32.
struct Chunk {
    rows: Tensor,
    targets: Tensor,
}

/// The tokens with a target, so many at a time that their logits stay small.
fn chunks(hidden: &Tensor, head: &Tensor, targets: &[i64]) -> Result<Vec<Chunk>> {
    let vocab = head.dim(0)?;
    if targets.len() != hidden.dim(0)? {
        bail!("{} targets for hidden states {:?}", targets.len(), hidden.dims());
    }
    let in_vocabulary = |target: i64| usize::try_from(target).is_ok_and(|target| target < vocab);
    if let Some(stray) = targets.iter().find(|t| **t != IGNORE_INDEX && !in_vocabulary(**t)) {
        bail!("target {stray} is outside of a vocabulary of {vocab}");
    }
    let trained: Vec<(u32, u32)> = (0u32..)
        .zip(targets)
        .filter(|(_, target)| **target != IGNORE_INDEX)
        .map(|(row, target)| (row, *target as u32))
        .collect();
    let device = hidden.device();
    let chunk = |pairs: &[(u32, u32)]| {
        let (rows, targets): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let len = rows.len();
        Ok(Chunk {
            rows: Tensor::from_vec(rows, len, device)?,
            targets: Tensor::from_vec(targets, len, device)?,
        })
    };
    trained.chunks((CHUNK_ELEMENTS / vocab.max(1)).max(16)).map(chunk).collect()
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

/// The chunk's losses `[C]` (f64) and its log-sum-exp `[C, 1]`.
fn losses(logits: &Tensor, chunk: &Chunk) -> Result<(Tensor, Tensor)> {
    let max = logits.max_keepdim(D::Minus1)?;
    let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    let log_sum_exp = (sum.log()? + max)?;
    let target_logits = logits.gather(&chunk.targets.unsqueeze(1)?, 1)?;
    let losses = (&log_sum_exp - target_logits)?.squeeze(1)?.to_dtype(DType::F64)?;
    Ok((losses, log_sum_exp))
}

fn cross_entropy(logits: &Tensor, chunk: &Chunk) -> Result<(Score, Tensor)> {
    let (losses, log_sum_exp) = losses(logits, chunk)?;
    let hits = logits.argmax(D::Minus1)?.eq(&chunk.targets)?;
    let score = Score {
        loss_sum: losses.to_vec1::<f64>()?.iter().sum(),
        num_targets: chunk.targets.dim(0)?,
        num_correct: hits.to_vec1::<u8>()?.iter().map(|hit| usize::from(*hit)).sum(),
    };
    Ok((score, log_sum_exp))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use candle_core::Device;

    const TARGETS: [i64; 5] = [3, IGNORE_INDEX, 0, 6, IGNORE_INDEX];

    fn reference(x: &[Tensor], softcap: Option<f64>) -> Result<Tensor> {
        let mut logits = x[0].matmul(&x[1].t()?)?;
        if let Some(cap) = softcap {
            logits = ((logits / cap)?.tanh()? * cap)?;
        }
        let kept = Tensor::new(&[0u32, 2, 3], &Device::Cpu)?;
        let targets = Tensor::new(&[3u32, 0, 6], &Device::Cpu)?;
        candle_nn::loss::cross_entropy(&logits.index_select(&kept, 0)?, &targets)? * (3.0 * 0.25)
    }

    #[test]
    fn matches_the_composition() -> Result<()> {
        for softcap in [None, Some(0.7)] {
            check::pair(
                &[&[5, 4], &[7, 4]],
                |x| reference(x, softcap),
                |x| {
                    let score = forward(&x[0], &x[1], &TARGETS, softcap)?;
                    Tensor::new(score.loss_sum * 0.25, &Device::Cpu)
                },
                |x, dy| {
                    let dy = dy.to_scalar::<f64>()?;
                    let (_, g) =
                        forward_backward(&x[0], &x[1], &TARGETS, softcap, 0.25 * dy, true)?;
                    Ok(vec![g.hidden, g.head.expect("asked for")])
                },
            )?;
        }
        Ok(())
    }

    #[test]
    fn the_score_counts_targets_and_hits() -> Result<()> {
        let head = Tensor::eye(3, DType::F32, &Device::Cpu)?;
        let hidden = Tensor::new(&[[9f32, 0., 0.], [0., 9., 0.], [0., 9., 0.]], &Device::Cpu)?;
        let score = forward(&hidden, &head, &[0, 2, IGNORE_INDEX], None)?;
        assert_eq!((score.num_targets, score.num_correct), (2, 1));
        let log_probs = log_probs(&hidden, &head, &[0, 2, IGNORE_INDEX], None)?;
        assert!((log_probs.iter().sum::<f64>() + score.loss_sum).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn nothing_to_train_gives_zero_gradients() -> Result<()> {
        let x = check::random(&[&[2, 4], &[7, 4]], DType::F32)?;
        let ignored = [IGNORE_INDEX; 2];
        let (score, g) = forward_backward(&x[0], &x[1], &ignored, None, 1.0, true)?;
        assert_eq!(score, Score::default());
        check::close(&g.hidden, &x[0].zeros_like()?, 0.0)?;
        check::close(&g.head.expect("asked for"), &x[1].zeros_like()?, 0.0)
    }

    #[test]
    fn a_target_outside_of_the_vocabulary_is_refused() -> Result<()> {
        let x = check::random(&[&[2, 4], &[7, 4]], DType::F32)?;
        for targets in [[0, 7], [0, -1]] {
            let error = forward(&x[0], &x[1], &targets, None).expect_err("out of range");
            assert!(error.to_string().contains("vocabulary of 7"), "{error}");
        }
        assert!(forward(&x[0], &x[1], &[0], None).is_err());
        Ok(())
    }
}
