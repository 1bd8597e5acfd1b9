//! Token embedding: rows of a table, and a gradient that is added to the used rows alone.

mod cpu;

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};

use crate::accumulation_dtype;
use crate::cpu::fast_dtype;
#[cfg(feature = "cuda")]
use crate::cuda::{embedding as gpu, on_gpu};
use crate::profile::{self, Op};

/// `table [V, E]`, `input_ids [N]` (u32, on the CPU for a table anywhere) → `[N, E]`, times `scale` (Gemma's `√E`, rounded to the
/// table's dtype as there), in the table's dtype.
pub fn forward(table: &Tensor, input_ids: &Tensor, scale: Option<f64>) -> Result<Tensor> {
    let _timer = profile::over(Op::Embedding, 0, &[input_ids]);
    let scale = scale.map(|scale| rounded(scale, table.dtype()));
    match fast_dtype(&[table]).filter(|_| is_id_list(input_ids)) {
        Some(DType::BF16) => return cpu::forward::<bf16>(table, input_ids, scale),
        Some(_) => return cpu::forward::<f32>(table, input_ids, scale),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[table]) && input_ids.rank() == 1 => {
            return gpu::forward(
                table,
                &crate::device::to_host(input_ids)?.to_vec1::<u32>()?,
                scale,
            );
        }
        None => {}
    }
    let rows = table.index_select(&input_ids.to_device(table.device())?, 0)?;
    match scale {
        Some(scale) => rows * scale,
        None => Ok(rows),
    }
}

/// Adds the gradient of the used rows to `d_table [V, E]` (f32, or f64 for f64; contiguous), which
/// is changed in place: every tensor that shares its storage sees the sum.
///
/// `input_ids [N]` (u32) and `scale` are those of [`forward`], `dy [N, E]` the gradient of its
/// output. Look-ups of `skip`, the padding token, add nothing (`torch.nn.Embedding`'s
/// `padding_idx`). Tokens that share a row are added in their order.
pub fn add_gradient(
    d_table: &Tensor,
    input_ids: &Tensor,
    scale: Option<f64>,
    dy: &Tensor,
    skip: Option<u32>,
) -> Result<()> {
    let _timer = profile::over(Op::Embedding, 0, &[dy, input_ids]);
    let (tokens, (rows, width)) = (input_ids.dims1()?, d_table.dims2()?);
    let (sum, term) = (d_table.dtype(), dy.dtype());
    if dy.dims() != [tokens, width] || (sum != accumulation_dtype(term) && sum != term) {
        bail!("embedding gradient dy {dy:?} of {tokens} tokens into {d_table:?}");
    }
    let ids = input_ids.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        bail!("token {id} is outside of a table of {rows} rows");
    }
    let scale = scale.map(|scale| rounded(scale, dy.dtype()));
    match fast_dtype(&[dy]).filter(|_| d_table.device().is_cpu()) {
        Some(DType::BF16) if sum == DType::BF16 => {
            cpu::add_gradient::<bf16, bf16>(d_table, &ids, scale, dy, skip)
        }
        Some(DType::BF16) => cpu::add_gradient::<bf16, f32>(d_table, &ids, scale, dy, skip),
        Some(_) => cpu::add_gradient::<f32, f32>(d_table, &ids, scale, dy, skip),
        #[cfg(feature = "cuda")]
        None if on_gpu(&[dy]) && on_gpu(&[d_table]) => {
            gpu::add_gradient(d_table, &ids, scale, dy, skip)
        }
        None => add_composed(d_table, &ids, scale, dy, skip),
    }
}

/// The same from candle's own ops, for f64, f16 and devices without a kernel here.
fn add_composed(
    d_table: &Tensor,
    ids: &[u32],
    scale: Option<f64>,
    dy: &Tensor,
    skip: Option<u32>,
) -> Result<()> {
    let (kept, ids): (Vec<u32>, Vec<u32>) =
        (0u32..).zip(ids).filter(|(_, id)| Some(**id) != skip).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let on_device = |ids: Vec<u32>| {
        let len = ids.len();
        Tensor::from_vec(ids, len, dy.device())
    };
    let dy = dy.contiguous()?.index_select(&on_device(kept)?, 0)?.to_dtype(d_table.dtype())?;
    let dy = (dy * scale.unwrap_or(1.0))?;
    d_table.slice_set(&d_table.index_add(&on_device(ids)?, &dy, 0)?, 0, 0)
}

fn is_id_list(ids: &Tensor) -> bool {
    ids.dtype() == DType::U32 && ids.device().is_cpu() && ids.rank() == 1
}

/// The number nearest to `scale` that `dtype` has.
fn rounded(scale: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => bf16::from_f64(scale).to_f64(),
        DType::F16 => f16::from_f64(scale).to_f64(),
        DType::F32 => f64::from(scale as f32),
        _ => scale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check, check_fast};
    use candle_core::Device;
    use proptest::prelude::*;

    fn ids(ids: &[u32]) -> Result<Tensor> {
        Tensor::new(ids, &Device::Cpu)
    }

    #[test]
    fn matches_the_composition() -> Result<()> {
        let ids = ids(&[2, 0, 2, 5])?;
        for scale in [None, Some(2.5)] {
            check::pair(
                &[&[6, 3]],
                |x| x[0].index_select(&ids, 0)? * scale.unwrap_or(1.0),
                |x| forward(&x[0], &ids, scale),
                |x, dy| {
                    let d_table = x[0].zeros_like()?;
                    add_gradient(&d_table, &ids, scale, dy, None)?;
                    Ok(vec![d_table])
                },
            )?;
        }
        Ok(())
    }

    /// Output, gradient, and gradient without the look-ups of token 1; the sums start at 0.25.
    fn all(x: &[Tensor], ids: &Tensor, scale: Option<f64>) -> Result<Vec<Tensor>> {
        let wide = accumulation_dtype(x[0].dtype());
        let sums = || (Tensor::ones(x[0].shape(), wide, &Device::Cpu)? * 0.25)?.contiguous();
        let (d_table, d_without) = (sums()?, sums()?);
        add_gradient(&d_table, ids, scale, &x[1], None)?;
        add_gradient(&d_without, ids, scale, &x[1], Some(1))?;
        Ok(vec![forward(&x[0], ids, scale)?, d_table, d_without])
    }

    #[test]
    fn kernels_agree_on_the_shapes_of_models() -> Result<()> {
        let many: Vec<u32> = (0..700u32).map(|i| i * i % 97).collect();
        for scale in [None, Some(24.0)] {
            check_fast::agrees(&[&[97, 256], &[700, 256]], |x| all(x, &ids(&many)?, scale))?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn kernels_agree_on_any_tokens(list in prop::collection::vec(0u32..9, 0..40), width in 1usize..70) {
            let shapes: [&[usize]; 2] = [&[9, width], &[list.len(), width]];
            check_fast::agrees(&shapes, |x| all(x, &ids(&list)?, Some(0.5))).expect("agrees");
        }
    }

    #[test]
    fn the_padding_token_gets_no_gradient() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let d_table = Tensor::zeros((3, 2), dtype, &Device::Cpu)?;
            let dy = Tensor::ones((3, 2), dtype, &Device::Cpu)?;
            add_gradient(&d_table, &ids(&[1, 2, 1])?, None, &dy, Some(1))?;
            let expected = Tensor::new(&[[0f32, 0.], [0., 0.], [1., 1.]], &Device::Cpu)?;
            check::close(&d_table, &expected, 0.0)?;
            add_gradient(&d_table, &ids(&[1, 1, 1])?, None, &dy, Some(1))?;
            check::close(&d_table, &expected, 0.0)?;
        }
        Ok(())
    }

    #[test]
    fn the_scale_is_that_of_the_dtype() -> Result<()> {
        let table = Tensor::ones((1, 1), DType::BF16, &Device::Cpu)?;
        let d_table = Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?;
        let scale = Some(1152f64.sqrt());
        let nearest = Tensor::new(&[[34f32]], &Device::Cpu)?;
        check::close(&forward(&table, &ids(&[0])?, scale)?, &nearest, 0.0)?;
        add_gradient(&d_table, &ids(&[0])?, scale, &table, None)?;
        check::close(&d_table, &nearest, 0.0)
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let x = check::random(&[&[3, 2], &[2, 2]], DType::F32)?;
        assert!(forward(&x[0], &ids(&[3])?, None).is_err());
        assert!(add_gradient(&x[0], &ids(&[0, 3])?, None, &x[1], None).is_err());
        assert!(add_gradient(&x[0], &ids(&[0])?, None, &x[1], None).is_err());
        let half = x[0].to_dtype(DType::BF16)?;
        assert!(add_gradient(&half, &ids(&[0, 1])?, None, &x[1], None).is_err());
        Ok(())
    }
}
