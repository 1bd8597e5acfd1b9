//! What the tests of every op share: random inputs, candle's autograd over a composition as the
//! oracle, and finite differences.

use candle_core::{DType, Device, Result, Tensor, Var};

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

/// Fails where two tensors differ by more than `tolerance` in any element.
pub(crate) fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> Result<()> {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
    let worst = (a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
    assert!(worst <= tolerance, "largest difference {worst:e} > {tolerance:e}");
    Ok(())
}

/// Holds a forward/backward pair, in f64, against a composition that candle differentiates and
/// against central differences of the forward pass.
pub(crate) fn pair(
    shapes: &[&[usize]],
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>>,
) -> Result<()> {
    let inputs = random(shapes, DType::F64)?;
    let y = forward(&inputs)?;
    let dy = random(&[y.dims()], DType::F64)?.remove(0);
    let gradients = backward(&inputs, &dy)?;
    assert_eq!(gradients.len(), inputs.len());

    let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let expected = reference(&tracked)?;
    close(&expected, &y, 1e-11)?;
    let store = (expected * &dy)?.sum_all()?.backward()?;
    for (var, gradient) in vars.iter().zip(&gradients) {
        close(store.get(var).expect("a gradient of every input"), gradient, 1e-10)?;
    }
    finite_differences(&inputs, &dy, &gradients, forward)
}

/// A few elements of each input, moved by ±h.
fn finite_differences(
    inputs: &[Tensor],
    dy: &Tensor,
    gradients: &[Tensor],
    forward: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    const H: f64 = 1e-5;
    for (which, gradient) in gradients.iter().enumerate() {
        let gradient = gradient.flatten_all()?.to_vec1::<f64>()?;
        for element in [0, gradient.len() / 3, gradient.len() - 1] {
            let objective = |offset: f64| -> Result<f64> {
                let mut moved = inputs.to_vec();
                let mut values = moved[which].flatten_all()?.to_vec1::<f64>()?;
                values[element] += offset;
                moved[which] = Tensor::from_vec(values, moved[which].dims(), &Device::Cpu)?;
                (forward(&moved)? * dy)?.sum_all()?.to_scalar::<f64>()
            };
            let slope = (objective(H)? - objective(-H)?) / (2.0 * H);
            let error = (slope - gradient[element]).abs();
            assert!(error < 1e-7 * (1.0 + slope.abs()), "input {which}[{element}]: {error:e}");
        }
    }
    Ok(())
}
