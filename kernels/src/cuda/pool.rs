//! The pool that the tensors of a device come from.
//!
//! A driver's own pool gives everything back at each synchronisation, and the next step pays for it
//! again. Ours keeps what was freed until [`trim`], and has a limit where one is wanted.
#![expect(unsafe_code, reason = "calls into the driver")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::{Device, Result, bail};
use sys::{CUgraphMem_attribute as OfGraphs, CUmemPool_attribute as Attribute};

use crate::device::PoolUsage;
use crate::memory::lacking;

/// Makes the pool that tensors of `device` come from, and keeps what is freed in it. Where there are no
/// pools, as on some virtual machines, each tensor is an allocation of its own, and no limit is kept.
pub(super) fn make(device: &Device, limit: Option<u64>) -> Result<()> {
    let stream = device.as_cuda_device()?.cuda_stream();
    if !stream.context().has_async_alloc() {
        match limit {
            Some(_) => bail!(
                "its driver has no pools of memory, which would keep memory.limit: leave that out"
            ),
            None => return Ok(()),
        }
    }
    let ordinal = stream.context().ordinal();
    // SAFETY: plain numbers and pointers, for which zero is a value: no handle, no limit.
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = location(ordinal);
    properties.maxSize = limit.unwrap_or(0) as usize;
    let handle = result::device::get(ordinal as i32).w()?;
    // SAFETY: the properties are whole. The pool is never destroyed, so it outlives every tensor.
    unsafe {
        let pool = result::mem_pool::create(&raw const properties).w()?;
        set(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
        result::device::set_mem_pool(handle, pool).w()
    }
}

/// Where the pool lies. Releases of the bindings name the two numbers differently.
fn location(ordinal: usize) -> sys::CUmemLocation {
    let kind = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE as u32;
    // SAFETY: in every release it is two numbers of 32 bits, the kind of place and which one of it.
    unsafe { std::mem::transmute::<[u32; 2], sys::CUmemLocation>([kind, ordinal as u32]) }
}

/// The driver's name for `device`, whose context is the thread's from here on.
fn handle(device: &Device) -> Result<sys::CUdevice> {
    let stream = device.as_cuda_device()?.cuda_stream();
    stream.context().bind_to_thread().w()?;
    result::device::get(stream.context().ordinal() as i32).w()
}

/// The pool that `device` has now; `None` where there are none.
fn of(device: &Device) -> Result<Option<sys::CUmemoryPool>> {
    if !device.as_cuda_device()?.cuda_stream().context().has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the device is there.
    unsafe { result::device::get_mem_pool(handle(device)?) }.map(Some).w()
}

/// # Safety
/// The pool exists, and the attribute is a number of 64 bits.
unsafe fn get(pool: sys::CUmemoryPool, attribute: Attribute) -> Result<u64> {
    let mut value = 0u64;
    let place = (&raw mut value).cast::<c_void>();
    // SAFETY: the caller's promise; the place has 64 bits.
    unsafe { result::mem_pool::get_attribute(pool, attribute, place) }.w()?;
    Ok(value)
}

/// # Safety
/// As for [`get`].
unsafe fn set(pool: sys::CUmemoryPool, attribute: Attribute, mut value: u64) -> Result<()> {
    let place = (&raw mut value).cast::<c_void>();
    // SAFETY: the caller's promise; the place has 64 bits.
    unsafe { result::mem_pool::set_attribute(pool, attribute, place) }.w()
}

/// A number about what graphs have of the device, beside the pool.
fn of_graphs(device: &Device, attribute: sys::CUgraphMem_attribute) -> Result<u64> {
    let handle = handle(device)?;
    let mut value = 0u64;
    let place = (&raw mut value).cast::<c_void>();
    // SAFETY: the device is there, and the attribute is a number of 64 bits.
    unsafe { sys::cuDeviceGetGraphMemAttribute(handle, attribute, place) }.result().w()?;
    Ok(value)
}

/// What the pool and the graphs of each device took together at most, before graphs came or went last:
/// the driver has a mark for either, which they need not have reached at the same time.
static EARLIER: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());

fn with_earlier<R>(device: &Device, f: impl FnOnce(&mut u64) -> R) -> Result<R> {
    let ordinal = device.as_cuda_device()?.cuda_stream().context().ordinal();
    let mut all = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(f(all.entry(ordinal).or_default()))
}

pub(crate) fn read(device: &Device) -> Option<PoolUsage> {
    let pool = of(device).ok()??;
    // SAFETY: the pool exists, and these are its counters.
    let counter = |attribute| unsafe { get(pool, attribute) }.ok();
    let graphs = |attribute| of_graphs(device, attribute).ok();
    let of_graphs = graphs(OfGraphs::CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT)?;
    let since = counter(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)? + of_graphs;
    Some(PoolUsage {
        used: counter(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)? + of_graphs,
        used_high: with_earlier(device, |earlier| since.max(*earlier)).ok()?,
        reserved: counter(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?
            + graphs(OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT)?,
        reserved_high: counter(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?
            + graphs(OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)?,
    })
}

/// To be called before a graph takes memory or gives it back, so that what the pool took at most
/// until then is not added to what graphs take after it.
pub(super) fn graphs_change(device: &Device) -> Result<()> {
    let Some(usage) = read(device) else { return Ok(()) };
    with_earlier(device, |earlier| *earlier = usage.used_high)?;
    of(device)?.map_or(Ok(()), |pool| begin_anew(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH))
}

fn begin_anew(pool: sys::CUmemoryPool, mark: Attribute) -> Result<()> {
    // SAFETY: the pool exists; zero is what sets a mark back.
    unsafe { set(pool, mark, 0) }
}

pub(crate) fn reset_high_water(device: &Device) -> Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let Some(pool) = of(device)? else { return Ok(()) };
    begin_anew(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
    begin_anew(pool, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH)?;
    with_earlier(device, |earlier| *earlier = 0)?;
    let of_graphs = OfGraphs::CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    let mut zero = 0u64;
    let place = (&raw mut zero).cast::<c_void>();
    // SAFETY: the device is there, and the mark is a number of 64 bits.
    unsafe { sys::cuDeviceSetGraphMemAttribute(handle(device)?, of_graphs, place) }.result().w()
}

/// Gives what the pool keeps back to the device, and what graphs have left. What was freed is the
/// pool's once the stream has come so far, so that is waited for.
pub(crate) fn trim(device: &Device) -> Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    device.synchronize()?;
    let Some(pool) = of(device)? else { return Ok(()) };
    // SAFETY: the pool exists.
    unsafe { result::mem_pool::trim_to(pool, 0) }.w()?;
    // SAFETY: the device is there.
    unsafe { sys::cuDeviceGraphMemTrim(handle(device)?) }.result().w()
}

/// Asks for memory, and where that is lacking once more of a pool that keeps none.
pub(super) fn ask<T>(device: &Device, ask: impl Fn() -> Result<T>) -> Result<T> {
    match ask() {
        Err(error) if lacking(&error).is_some() && trim_if_idle(device)? => ask(),
        asked => asked,
    }
}

/// [`trim`] where that may be waited for: false while work is recorded.
fn trim_if_idle(device: &Device) -> Result<bool> {
    let status = device.as_cuda_device()?.cuda_stream().capture_status().w()?;
    let is_idle = status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    if is_idle {
        trim(device)?;
    }
    Ok(is_idle)
}
