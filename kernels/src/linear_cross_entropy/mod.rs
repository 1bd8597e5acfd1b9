//! The head and the loss in one: `cross_entropy(softcap(hidden · headᵀ), targets)`, chunked over
//! tokens so that the logits of the whole batch never exist.

mod buffers;
mod composed;
mod cpu;
#[cfg(feature = "cuda")]
mod gpu;
mod head_gradient;
mod pending;
mod rehearse;
mod softmax;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::accumulation_dtype;
use crate::cpu::{self as slices, Real, Stored};
use crate::fresh::with_room;
use crate::gemm::Output;
use crate::profile::{self, Op, Timer};

pub use pending::Pending;
pub use rehearse::{rehearse_forward, rehearse_forward_backward};

/// The target that takes no part in the loss, as in PyTorch.
pub const IGNORE_INDEX: i64 = -100;

/// What [`forward`] and [`forward_backward`] report of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Sum of the cross entropy over the trained tokens, in nats.
    pub loss_sum: f64,
    /// Tokens whose target is not [`IGNORE_INDEX`].
    pub num_targets: usize,
    /// Of those, how many the most likely token names; of equally likely ones the first.
    pub num_correct: usize,
}

/// Loss without gradients: `hidden [N, E]`, `head [V, E]`, `targets` N class indices.
pub fn forward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
) -> Result<Score> {
    let _timer = timer(hidden, head, targets, 1);
    let trained = trained(hidden, head, targets)?;
    Ok(Head { hidden, weight: head, softcap }.losses(&trained)?.score())
}

/// Loss and gradients in one pass: the score, and the gradient of `hidden`, `[N, E]` in its dtype,
/// which is zero in rows without a target.
///
/// The gradient of the head is added in place to `d_head [V, E]`, f32 (f64 for f64) or the dtype of
/// `head`, where it is asked for; every tensor that shares its storage sees it, so it must share none with `hidden` or
/// `head`. The gradients are those of `loss_sum · loss_scale`.
pub fn forward_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
    loss_scale: f64,
    d_head: Option<&Tensor>,
) -> Result<(Score, Tensor)> {
    let (score, d_hidden) =
        begin_forward_backward(hidden, head, targets, softcap, loss_scale, d_head)?;
    Ok((score.wait()?, d_hidden))
}

/// [`forward_backward`] without waiting for what a GPU has been asked to do.
pub fn begin_forward_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
    loss_scale: f64,
    d_head: Option<&Tensor>,
) -> Result<(Pending, Tensor)> {
    let products = if d_head.is_some() { 3 } else { 2 };
    let _timer = timer(hidden, head, targets, products);
    let trained = trained(hidden, head, targets)?;
    let wide = accumulation_dtype(head.dtype());
    let fits =
        |d: &&Tensor| d.dims() == head.dims() && (d.dtype() == wide || d.dtype() == head.dtype());
    if let Some(d) = d_head.filter(|d| !fits(d)) {
        bail!("a gradient {:?} of {:?} for a head {:?}", d.dtype(), d.dims(), head.dims());
    }
    if let Some(d_head) = d_head {
        slices::check_apart(d_head, &[hidden, head])?;
    }
    let head = Head { hidden, weight: head, softcap };
    let (losses, d_hidden) = match head.kernel_dtype() {
        Some(DType::BF16) => head.fast_gradients::<bf16>(&trained, loss_scale, d_head)?,
        Some(_) => head.fast_gradients::<f32>(&trained, loss_scale, d_head)?,
        #[cfg(feature = "cuda")]
        None if head.is_on_gpu() && !trained.rows.is_empty() => {
            return gpu::gradients(&head, &trained, loss_scale, d_head);
        }
        None => composed::gradients(&head, &trained, loss_scale, d_head)?,
    };
    Ok((Pending::known(losses.score()), d_hidden))
}

/// Log-probability of each target under the logits, `targets.len()` values; 0 for
/// [`IGNORE_INDEX`].
pub fn log_probs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[i64],
    softcap: Option<f64>,
) -> Result<Vec<f64>> {
    let _timer = timer(hidden, head, targets, 1);
    let mut all = vec![0.0; targets.len()];
    let trained = trained(hidden, head, targets)?;
    let losses = Head { hidden, weight: head, softcap }.losses(&trained)?;
    for (row, loss) in trained.rows.iter().zip(losses.of_token) {
        all[*row as usize] = -loss;
    }
    Ok(all)
}

/// Counts so many products of the trained tokens by the head.
fn timer(hidden: &Tensor, head: &Tensor, targets: &[i64], products: usize) -> Timer {
    let trained = targets.iter().filter(|target| **target != IGNORE_INDEX).count();
    let flops = products * 2 * trained * head.elem_count();
    profile::over(Op::Loss, flops, &[hidden, hidden])
        .moving(products * head.elem_count() * head.dtype().size_in_bytes())
}

/// Bytes that [`forward_backward`] needs on the CPU besides its arguments and results, for
/// `tokens` trained tokens, a vocabulary of `vocab` and hidden states of `hidden` elements; `trains`
/// says whether the gradient of the head is wanted.
///
/// f32 and bf16 stay within 64 MiB wherever 12 tokens do, on tiles on up to 16 threads; products by
/// vectors take a further 192 KiB a thread.
pub fn workspace_bytes(
    tokens: usize,
    vocab: usize,
    hidden: usize,
    dtype: DType,
    trains: bool,
) -> usize {
    match dtype {
        DType::F32 | DType::BF16 => buffers::workspace_bytes(tokens, vocab, hidden, dtype, trains),
        _ => {
            let chunk = tokens.min(composed::chunk_tokens(vocab));
            let copies = 4 * accumulation_dtype(dtype).size_in_bytes() + dtype.size_in_bytes();
            chunk * vocab * copies + (chunk + vocab) * hidden * 8
        }
    }
}

impl Score {
    /// Adds another batch's score to this one.
    pub fn add(&mut self, other: Score) {
        self.loss_sum += other.loss_sum;
        self.num_targets += other.num_targets;
        self.num_correct += other.num_correct;
    }
}

/// What the logits are made of.
struct Head<'a> {
    hidden: &'a Tensor,
    weight: &'a Tensor,
    softcap: Option<f64>,
}

impl Head<'_> {
    fn kernel_dtype(&self) -> Option<DType> {
        let dtype = slices::fast_dtype(&[self.hidden, self.weight])?;
        (self.weight.elem_count() > 0).then_some(dtype)
    }

    #[cfg(feature = "cuda")]
    fn is_on_gpu(&self) -> bool {
        crate::cuda::on_gpu(&[self.hidden, self.weight]) && self.weight.elem_count() > 0
    }

    fn losses(&self, trained: &Trained) -> Result<Losses> {
        match self.kernel_dtype() {
            Some(DType::BF16) => self.with_slices::<bf16, _>(|head| head.losses(trained)),
            Some(_) => self.with_slices::<f32, _>(|head| head.losses(trained)),
            #[cfg(feature = "cuda")]
            None if self.is_on_gpu() && !trained.rows.is_empty() => gpu::losses(self, trained),
            None => composed::losses(self, trained),
        }
    }

    fn with_slices<T: Real, R>(&self, f: impl FnOnce(cpu::Head<T>) -> Result<R>) -> Result<R> {
        let (width, softcap) = (self.hidden.dim(1)?, self.softcap.map(|cap| cap as f32));
        slices::with([self.hidden, self.weight], |[hidden, weight]| {
            f(cpu::Head { hidden, weight, width, softcap })
        })
    }

    fn fast_gradients<T: Real>(
        &self,
        trained: &Trained,
        loss_scale: f64,
        d_head: Option<&Tensor>,
    ) -> Result<(Losses, Tensor)> {
        let mut d_hidden = with_room(self.hidden.elem_count())?;
        d_hidden.resize(self.hidden.elem_count(), T::narrow(0.0));
        let losses = self.with_slices::<T, _>(|head| match d_head {
            None => head.gradients::<f32>(trained, loss_scale, &mut d_hidden, None),
            Some(d_head) if d_head.dtype() == DType::BF16 => {
                add_gradients::<T, bf16>(&head, trained, loss_scale, &mut d_hidden, d_head)
            }
            Some(d_head) => {
                add_gradients::<T, f32>(&head, trained, loss_scale, &mut d_hidden, d_head)
            }
        })?;
        Ok((losses, slices::tensor(d_hidden, self.hidden.dims())?))
    }
}

fn add_gradients<T: Real, G: Stored + Output>(
    head: &cpu::Head<T>,
    trained: &Trained,
    loss_scale: f64,
    d_hidden: &mut [T],
    d_head: &Tensor,
) -> Result<Losses> {
    let mut losses = Losses::default();
    slices::update(d_head, |d_head: &mut [G]| {
        losses = head.gradients(trained, loss_scale, d_hidden, Some(d_head))?;
        Ok(())
    })?;
    Ok(losses)
}

/// The tokens that have a target, in their order.
struct Trained {
    rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Trained {
    /// Rows and targets, up to `tokens` at a time.
    fn chunks(&self, tokens: usize) -> impl Iterator<Item = (&[u32], &[u32])> {
        let tokens = tokens.max(1);
        self.rows.chunks(tokens).zip(self.targets.chunks(tokens))
    }
}

fn trained(hidden: &Tensor, head: &Tensor, targets: &[i64]) -> Result<Trained> {
    let (tokens, width) = hidden.dims2()?;
    let (vocab, head_width) = head.dims2()?;
    if width != head_width {
        bail!("hidden states {:?} for a head {:?}", hidden.dims(), head.dims());
    }
    if targets.len() != tokens {
        bail!("{} targets for hidden states {:?}", targets.len(), hidden.dims());
    }
    let in_vocabulary = |target: i64| usize::try_from(target).is_ok_and(|target| target < vocab);
    if let Some(stray) = targets.iter().find(|t| **t != IGNORE_INDEX && !in_vocabulary(**t)) {
        bail!("target {stray} is outside of a vocabulary of {vocab}");
    }
    let (rows, targets) = (0u32..)
        .zip(targets)
        .filter(|(_, target)| **target != IGNORE_INDEX)
        .map(|(row, target)| (row, *target as u32))
        .unzip();
    Ok(Trained { rows, targets })
}

/// Of the trained tokens, in their order.
#[derive(Default)]
struct Losses {
    /// In nats.
    of_token: Vec<f64>,
    num_correct: usize,
}

impl Losses {
    fn score(&self) -> Score {
        Score {
            loss_sum: self.of_token.iter().sum(),
            num_targets: self.of_token.len(),
            num_correct: self.num_correct,
        }
    }
}
