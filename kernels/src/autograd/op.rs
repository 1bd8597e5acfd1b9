//! A pair as candle's custom op of one, two or three inputs.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, Layout, Result, Shape, Tensor, bail,
};

/// Of the inputs, of which of them gradients are wanted, and of the output's gradient: the inputs'
/// gradients.
type Backward<const N: usize> =
    dyn Fn(&[Tensor; N], [bool; N], &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync;

/// An op whose output is already there when candle asks for it.
///
/// candle hands the forward pass bare storage, which cannot become a tensor without a copy. So the
/// pair runs on the tensors before the op is applied, and the op only moves the result in.
pub(super) struct Op<const N: usize> {
    name: &'static str,
    output: Mutex<Option<Tensor>>,
    backward: Box<Backward<N>>,
}

impl<const N: usize> Op<N> {
    /// `output` is a tensor of its own: it shares its storage with nothing that is used again.
    pub(super) fn new(
        name: &'static str,
        output: Tensor,
        backward: impl Fn(&[Tensor; N], [bool; N], &Tensor) -> Result<[Option<Tensor>; N]>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { name, output: Mutex::new(Some(output)), backward: Box::new(backward) }
    }

    fn output(&self) -> Result<(CpuStorage, Shape)> {
        match self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(output) => Ok((storage_of(&output)?, output.shape().clone())),
            None => bail!("{} was applied twice", self.name),
        }
    }

    /// A gradient for every input that is tracked, in the input's dtype, and for no other.
    fn gradients(&self, inputs: [&Tensor; N], dy: &Tensor) -> Result<[Option<Tensor>; N]> {
        let wanted = inputs.map(Tensor::track_op);
        let detached = inputs.map(Tensor::detach);
        let mut gradients = (self.backward)(&detached, wanted, &dy.contiguous()?)?;
        for ((gradient, input), wanted) in gradients.iter_mut().zip(&detached).zip(wanted) {
            *gradient = match gradient.take() {
                Some(gradient) if wanted => Some(gradient.to_dtype(input.dtype())?),
                None if wanted => bail!("{} has no gradient of an input", self.name),
                _ => None,
            };
        }
        Ok(gradients)
    }
}

impl CustomOp1 for Op<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = self.gradients([x], dy)?;
        Ok(dx)
    }
}

impl CustomOp2 for Op<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients([a, b], dy).map(Into::into)
    }
}

impl CustomOp3 for Op<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.gradients([a, b, c], dy).map(Into::into)
    }
}

/// Moves the storage out of a tensor that nobody uses any more; copies it where the tensor is a
/// part of its storage.
fn storage_of(tensor: &Tensor) -> Result<CpuStorage> {
    let moved = Move(Mutex::new(None));
    tensor.inplace_op1(&moved)?;
    if let Some(storage) = moved.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Ok(storage);
    }
    let copied = Move(Mutex::new(None));
    tensor.force_contiguous()?.inplace_op1(&copied)?;
    match copied.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(storage) => Ok(storage),
        None => bail!("no storage of floats on the CPU: {tensor:?}"),
    }
}

struct Move(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Move {
    fn name(&self) -> &'static str {
        "move"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let len = match storage {
            CpuStorage::F64(values) => values.len(),
            CpuStorage::F32(values) => values.len(),
            CpuStorage::F16(values) => values.len(),
            CpuStorage::BF16(values) => values.len(),
            _ => return Ok(()),
        };
        if layout.contiguous_offsets() == Some((0, len)) {
            let storage = std::mem::replace(storage, CpuStorage::U8(Vec::new()));
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(storage);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn a_part_of_a_storage_is_copied_and_a_whole_one_moved() -> Result<()> {
        let x = Tensor::arange(0f32, 6.0, &Device::Cpu)?;
        let values = |storage| match storage {
            CpuStorage::F32(values) => values,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(values(storage_of(&x.narrow(0, 2, 3)?)?), [2.0, 3.0, 4.0]);
        assert_eq!(values(storage_of(&x.reshape((2, 3))?.t()?)?), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(values(storage_of(&x)?), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(storage_of(&x).is_err(), "it was moved away");
        assert!(storage_of(&Tensor::zeros(2, DType::U32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
