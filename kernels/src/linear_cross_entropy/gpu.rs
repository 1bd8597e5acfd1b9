//! The head and the loss on a GPU: products by cuBLAS, and between them a kernel that goes through the
//! logits of a chunk of tokens and leaves their gradient in their place.

use candle_core::{DType, Result, Tensor};

use super::{Head, Losses, Pending, Trained};
use crate::cuda::cross_entropy::{self, Rows};
use crate::cuda::gemm::{Before, Factor, multiply};
use crate::cuda::host::upload;
use crate::cuda::{embedding, empty};
use crate::device::to_host;
use crate::gpu_sizes::loss_chunk;

/// The loss of each trained token.
pub(super) fn losses(head: &Head, trained: &Trained) -> Result<Losses> {
    let work = Work::over(head, trained)?;
    work.each_chunk(trained, |rows, found| {
        multiply(
            found.logits,
            &Factor::new(rows)?,
            &Factor::transposed(head.weight)?,
            Before::Replaced,
        )?;
        found.losses()
    })?;
    found(&work.losses, &work.hits)
}

/// The loss of each trained token, and the gradient of `hidden`; that of the head is added to
/// `d_head`.
pub(super) fn gradients(
    head: &Head,
    trained: &Trained,
    loss_scale: f64,
    d_head: Option<&Tensor>,
) -> Result<(Pending, Tensor)> {
    let work = Work::over(head, trained)?;
    let d_hidden = head.hidden.zeros_like()?;
    let dtype = head.hidden.dtype();
    let mut first = 0;
    work.each_chunk(trained, |rows, found| {
        let weight = Factor::new(head.weight)?;
        let transposed = Factor::transposed(head.weight)?;
        multiply(found.logits, &Factor::new(rows)?, &transposed, Before::Replaced)?;
        found.gradients(loss_scale, dtype)?;
        let d_logits = match dtype {
            DType::BF16 => Factor::bf16_over(found.logits)?,
            _ => Factor::new(found.logits)?,
        };
        let chunk = &trained.rows[first..first + rows.dim(0)?];
        match range(chunk) {
            Some((begin, len)) => {
                let place = d_hidden.narrow(0, begin, len)?;
                multiply(&place, &d_logits, &weight, Before::Replaced)?;
            }
            None => {
                let d_rows = empty(rows.dims(), dtype, rows.device())?;
                multiply(&d_rows, &d_logits, &weight, Before::Replaced)?;
                embedding::add_gradient(&d_hidden, chunk, None, &d_rows, None)?;
            }
        }
        first += chunk.len();
        match d_head {
            Some(d_head) => {
                multiply(d_head, &d_logits.turned(), &Factor::new(rows)?, Before::AddedTo)
            }
            None => Ok(()),
        }
    })?;
    let found = cross_entropy::total(&work.losses, &work.hits)?;
    Ok((Pending::on_gpu(found, trained.rows.len())?, d_hidden))
}

/// The first of rows that follow each other, and how many there are.
fn range(rows: &[u32]) -> Option<(usize, usize)> {
    let (first, last) = (*rows.first()?, *rows.last()?);
    ((last - first) as usize + 1 == rows.len()).then_some((first as usize, rows.len()))
}

/// What the chunks have in common.
struct Work<'a> {
    hidden: Tensor,
    head: &'a Head<'a>,
    /// Of the largest chunk.
    logits: Tensor,
    /// Of all trained tokens.
    targets: Tensor,
    losses: Tensor,
    hits: Tensor,
}

impl<'a> Work<'a> {
    fn over(head: &'a Head<'a>, trained: &Trained) -> Result<Self> {
        let (tokens, vocab) = (trained.rows.len(), head.weight.dim(0)?);
        let device = head.hidden.device();
        Ok(Self {
            hidden: head.hidden.contiguous()?,
            head,
            logits: empty((loss_chunk(tokens, vocab), vocab), DType::F32, device)?,
            targets: upload(&trained.targets, tokens, device)?,
            losses: empty(tokens, DType::F32, device)?,
            hits: empty(tokens, DType::U32, device)?,
        })
    }

    /// Calls `f` with the hidden states of each chunk, and what is to be found of it.
    fn each_chunk(
        &self,
        trained: &Trained,
        mut f: impl FnMut(&Tensor, &Rows) -> Result<()>,
    ) -> Result<()> {
        let mut first = 0;
        for (rows, _) in trained.chunks(self.logits.dim(0)?) {
            let count = rows.len();
            let hidden = match range(rows) {
                Some((begin, len)) => self.hidden.narrow(0, begin, len)?,
                None => embedding::forward(&self.hidden, rows, None)?,
            };
            let part = |of: &Tensor| of.narrow(0, first, count);
            let (targets, losses, hits) =
                (part(&self.targets)?, part(&self.losses)?, part(&self.hits)?);
            let logits = self.logits.narrow(0, 0, count)?;
            let found = Rows {
                logits: &logits,
                targets: &targets,
                losses: &losses,
                hits: &hits,
                softcap: self.head.softcap,
            };
            f(&hidden, &found)?;
            first += count;
        }
        Ok(())
    }
}

/// Waits for the device.
pub(super) fn found(losses: &Tensor, hits: &Tensor) -> Result<Losses> {
    let losses = to_host(losses)?.to_vec1::<f32>()?;
    let hits = to_host(hits)?.to_vec1::<u32>()?;
    Ok(Losses {
        of_token: losses.into_iter().map(f64::from).collect(),
        num_correct: hits.into_iter().sum::<u32>() as usize,
    })
}
