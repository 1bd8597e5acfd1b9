//! What [`device`](crate::device), [`graph`](crate::graph) and [`Clip`] find in a build without the feature
//! `cuda`: no GPU.
#![expect(clippy::unnecessary_wraps, reason = "a GPU can fail at what is nothing here")]

use candle_core::{Device, Error, Result, Tensor};

use crate::adamw::{Clip, Halt};
use crate::device::PoolUsage;

pub(crate) fn open(_ordinal: usize, _limit: Option<u64>) -> Result<Device> {
    Err(Error::NotCompiledWithCudaSupport)
}

pub(crate) fn count() -> Result<usize> {
    Ok(0)
}

pub(crate) fn attention_library() -> std::result::Result<String, &'static str> {
    Err("this build computes on the CPU")
}

pub(crate) fn uuid(_ordinal: usize) -> Option<String> {
    None
}

pub(crate) fn free_and_total(_device: &Device) -> Option<(u64, u64)> {
    None
}

pub(crate) fn read(_device: &Device) -> Option<PoolUsage> {
    None
}

pub(crate) fn reset_high_water(_device: &Device) -> Result<()> {
    Ok(())
}

pub(crate) fn trim(_device: &Device) -> Result<()> {
    Ok(())
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Graph {}

impl Graph {
    #[expect(unsafe_code, reason = "as the GPU's")]
    pub(crate) unsafe fn launch(&mut self) -> Result<()> {
        match *self {}
    }
}

pub(crate) fn record(
    _device: &Device,
    _work: impl FnOnce() -> Result<()>,
) -> Result<Option<Graph>> {
    Ok(None)
}

pub(crate) fn clip(
    _gradients: &[&Tensor],
    _losses: &[&Tensor],
    _max_norm: f64,
    _halt: &Halt,
) -> Result<Option<Clip>> {
    Ok(None)
}
