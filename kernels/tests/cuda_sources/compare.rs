//! Inputs, and how near results must be to what the crate's own ops make of them.

use candle_core::{DType, Device, Result, Tensor};

/// What kernels compute with.
pub(crate) const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// How a dtype is called in the name of a kernel.
pub(crate) fn suffix(dtype: DType) -> &'static str {
    if dtype == DType::BF16 { "bf16" } else { "f32" }
}

/// Elements of 16 bytes.
pub(crate) fn vector(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// Threads for a row: whole warps, for each 16 bytes a thread, within bounds.
pub(crate) fn row_threads(width: usize, dtype: DType, most: usize) -> usize {
    width.div_ceil(vector(dtype)).next_multiple_of(32).clamp(32, most)
}

/// Reproducible values in (−1, 1), one tensor a shape.
pub(crate) fn random(shapes: &[&[usize]], dtype: DType) -> Result<Vec<Tensor>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    let tensor = |shape: &&[usize]| {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
        Tensor::from_vec(values, *shape, &Device::Cpu)?.to_dtype(dtype)
    };
    shapes.iter().map(tensor).collect()
}

/// Sums and exponentials in f32 in two orders: what may be between them, relative to the largest
/// value of a tensor.
const F32_ROUNDING: f64 = 2e-6;

/// Two values that are the same before rounding but for that may be rounded to neighbours in bf16,
/// which are up to 2⁻⁷ of them apart.
const BF16_NEIGHBOUR: f64 = 1.0 / 128.0;

/// Fails where `got` is further from `expected` than the two orders of their sums explain.
pub(crate) fn near(got: &Tensor, expected: &Tensor) -> Result<()> {
    within(got, expected, 1.0)
}

/// The same, for sums that are so many times less exact.
pub(crate) fn within(got: &Tensor, expected: &Tensor, times: f64) -> Result<()> {
    assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()));
    let neighbour = if got.dtype() == DType::BF16 { BF16_NEIGHBOUR } else { 0.0 };
    let values = |x: &Tensor| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (got, expected) = (values(got)?, values(expected)?);
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    for (i, (got, expected)) in got.into_iter().zip(expected).enumerate() {
        let bound = neighbour * expected.abs() + times * F32_ROUNDING * largest;
        assert!((got - expected).abs() <= bound, "element {i}: {got}, not {expected} ± {bound:e}");
    }
    Ok(())
}

/// Fails where two tensors differ in any bit.
pub(crate) fn same(got: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()));
    let bits = |x: &Tensor| -> Result<Vec<u64>> {
        let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        Ok(values.into_iter().map(f64::to_bits).collect())
    };
    let (got, expected) = (bits(got)?, bits(expected)?);
    let differs = got.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(differs.is_none(), "element {differs:?} has other bits");
    Ok(())
}
