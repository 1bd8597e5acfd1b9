//! Holds the kernels for f32 and bf16 against the composed ops in f64.

use candle_core::{DType, Result, Tensor};

use crate::check;

/// Relative error of a rounding to bf16, half a unit in the last place.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// What sums and exponentials in f32 may be off by, beside the largest value of a tensor.
const F32_ROUNDING: f64 = 4e-6;

/// Runs `op` in f32 and in bf16 over random inputs of `shapes`, and in f64 over the very same
/// values. Every output must agree within the rounding of its own dtype, and must have the same
/// bits whether one thread computes it or three.
pub(crate) fn agrees(
    shapes: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Sync,
) -> Result<()> {
    agrees_on(&check::random(shapes, DType::F64)?, op)
}

/// The same for these inputs.
pub(crate) fn agrees_on(
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Sync,
) -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let narrow: Vec<Tensor> =
            inputs.iter().map(|x| x.to_dtype(dtype)).collect::<Result<_>>()?;
        let wide: Vec<Tensor> =
            narrow.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<_>>()?;
        let one = on_threads(1, || op(&narrow))?;
        let three = on_threads(3, || op(&narrow))?;
        let exact = op(&wide)?;
        assert_eq!(one.len(), exact.len());
        for ((one, three), exact) in one.iter().zip(&three).zip(&exact) {
            near(one, exact)?;
            same(one, three)?;
        }
    }
    Ok(())
}

/// What `f` returns in a pool of so many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(f)
}

/// Fails where two tensors differ in any bit.
pub(crate) fn same(a: &Tensor, b: &Tensor) -> Result<()> {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    assert!(bits(a)? == bits(b)?, "other bits");
    Ok(())
}

fn bits(x: &Tensor) -> Result<Vec<u64>> {
    let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(values.into_iter().map(f64::to_bits).collect())
}

fn near(got: &Tensor, exact: &Tensor) -> Result<()> {
    assert_eq!(got.dims(), exact.dims());
    let rounding = if got.dtype() == DType::BF16 { BF16_ROUNDING } else { F32_ROUNDING };
    let values = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let exact = values(exact)?;
    let largest = exact.iter().fold(1f64, |largest, x| largest.max(x.abs()));
    for (i, (got, exact)) in values(got)?.into_iter().zip(exact).enumerate() {
        let bound = rounding * exact.abs() + F32_ROUNDING * largest;
        assert!((got - exact).abs() <= bound, "element {i}: {got}, not {exact}");
    }
    Ok(())
}
