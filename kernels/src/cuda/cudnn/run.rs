//! A plan at work on tensors.
#![expect(unsafe_code, reason = "a plan is given addresses")]

use std::ffi::c_void;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::super::attention::Inputs;
use super::super::launch::{NO_NUMBER, address, empty, fill};
use super::super::upload::upload;
use super::descriptor::{Address, Handle};
use super::graph::{Name, Plan, Shape, pack};
use crate::attention::Params;

/// A plan, and where it runs.
pub(super) struct Run<'a> {
    pub(super) handle: Handle,
    pub(super) plan: &'a Plan,
    pub(super) shape: &'a Shape,
    /// Whether it is compared: then it finds no number in its workspace. Fresh memory is often zero, and
    /// a plan that counts on that would be right here and wrong later.
    pub(super) is_tried: bool,
}

/// Numbers that a plan reads on the host when it is handed over.
struct Numbers {
    scale: f32,
    softcap: f32,
    masked: f32,
    window: i32,
}

impl Numbers {
    fn of(params: Params) -> Self {
        Self {
            scale: params.scale as f32,
            softcap: params.softcap.unwrap_or(0.0) as f32,
            masked: f32::NEG_INFINITY,
            window: params.window.map_or(i32::MAX, |window| window.min(i32::MAX as usize) as i32),
        }
    }

    fn addresses(&self, shape: &Shape) -> Vec<(Name, Address)> {
        fn of<T>(number: &T) -> Address {
            Address(std::ptr::from_ref(number).cast_mut().cast::<c_void>())
        }
        let mut all = vec![(Name::Scale, of(&self.scale)), (Name::Masked, of(&self.masked))];
        if shape.has_softcap {
            all.push((Name::Softcap, of(&self.softcap)));
        }
        if shape.has_window {
            all.push((Name::Window, of(&self.window)));
        }
        all
    }
}

/// Of the tokens of a run in a tensor that has all tokens.
fn place(tensor: &Tensor, run: &[Range<usize>]) -> Result<Address> {
    Ok(Address(address(&tensor.narrow(0, run[0].start, 1)?)? as *mut c_void))
}

impl Run<'_> {
    /// The output and the log-sum-exps of documents that follow each other, where all tokens have theirs.
    pub(super) fn forward(
        &self,
        inputs: &Inputs,
        documents: &[Range<usize>],
        params: Params,
        [y, lse]: [&Tensor; 2],
    ) -> Result<()> {
        self.execute(inputs, &[(Name::Y, y), (Name::LogSumExp, lse)], documents, params)
    }

    /// The gradients, likewise.
    pub(super) fn backward(
        &self,
        inputs: &Inputs,
        dy: &Tensor,
        documents: &[Range<usize>],
        params: Params,
        [y, lse]: [&Tensor; 2],
        [dq, dk, dv]: [&Tensor; 3],
    ) -> Result<()> {
        let others = [
            (Name::Y, y),
            (Name::LogSumExp, lse),
            (Name::Dy, dy),
            (Name::Dq, dq),
            (Name::Dk, dk),
            (Name::Dv, dv),
        ];
        self.execute(inputs, &others, documents, params)
    }

    fn execute(
        &self,
        inputs: &Inputs,
        others: &[(Name, &Tensor)],
        documents: &[Range<usize>],
        params: Params,
    ) -> Result<()> {
        let Inputs { q, k, v, .. } = inputs;
        let (device, first) = (q.device(), documents[0].start);
        // The library reads numbers with a sign, of which these have none. Documents that are not there
        // are empty ones at the end.
        let ends = documents.iter().map(|document| (document.end - first) as u32);
        let mut boundaries: Vec<u32> = std::iter::once(0).chain(ends).collect();
        boundaries.resize(self.shape.documents + 1, boundaries[documents.len()]);
        let count = boundaries.len();
        let boundaries = upload(&boundaries, count, device)?;
        let workspace = empty(self.plan.workspace.max(1), DType::U8, device)?;
        if self.is_tried {
            fill(&workspace, NO_NUMBER)?;
        }
        let numbers = Numbers::of(params);
        let mut addresses = numbers.addresses(self.shape);
        for (name, tensor) in [(Name::Q, q), (Name::K, k), (Name::V, v)].iter().chain(others) {
            addresses.push((*name, place(tensor, documents)?));
        }
        addresses.push((Name::CuSeqlens, Address(address(&boundaries)? as *mut c_void)));
        let workspace_address = Address(address(&workspace)? as *mut c_void);
        let pack = pack(&addresses, workspace_address)?;
        // SAFETY: the tensors are contiguous and have the tokens of all documents, behind their first
        // one's place; the workspace has what the plan takes. What is freed here is freed in the
        // stream's order. The numbers on the host are read before this returns.
        unsafe { self.plan.descriptor.execute(self.handle, &pack) }
    }
}
