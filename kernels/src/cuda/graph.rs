//! CUDA graphs: what the stream is given between two moments, as one thing that can be done again.
#![expect(unsafe_code, reason = "calls into the driver")]

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::{Device, Result, bail};

use super::pool;

/// As [`crate::graph::Graph`].
pub(crate) struct Graph {
    graph: CudaGraph,
    device: Device,
    has_memory: bool,
}

// SAFETY: the driver lets any thread use a graph, one at a time; its only use is by `&mut`, and by drop.
unsafe impl Send for Graph {}
// SAFETY: as above: nothing can be done with a `&Graph`.
unsafe impl Sync for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

impl Graph {
    /// # Safety
    /// As [`crate::graph::Graph::launch`].
    pub(crate) unsafe fn launch(&mut self) -> Result<()> {
        if !self.has_memory {
            pool::graphs_change(&self.device)?;
            self.has_memory = true;
        }
        // What the pool keeps is not a graph's to take.
        pool::ask(&self.device, || self.graph.launch().w())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // A mark that cannot be set stays where it was.
        pool::graphs_change(&self.device).ok();
    }
}

/// Ends a capture that the work has not come to the end of.
struct Capture<'a>(&'a Device);

impl Capture<'_> {
    fn begin(device: &Device) -> Result<Capture<'_>> {
        // Relaxed: what other threads ask of the driver meanwhile goes elsewhere, and must not fail.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        device.as_cuda_device()?.cuda_stream().begin_capture(mode).w()?;
        Ok(Capture(device))
    }

    fn end(self) -> Result<Option<CudaGraph>> {
        let captured = Self::stop(self.0);
        std::mem::forget(self);
        captured
    }

    fn stop(device: &Device) -> Result<Option<CudaGraph>> {
        let stream = device.as_cuda_device()?.cuda_stream();
        // What was freed in a capture that went wrong was refused, which the bindings keep for the
        // next call to fail by.
        let before = stream.context().check_err();
        let captured = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        let behind = stream.context().check_err();
        before.w()?;
        behind.w()?;
        captured.w()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // The work failed or panicked, and what was recorded of it is of no use.
        drop(Self::stop(self.0));
    }
}

/// As [`crate::graph::Graph::record`].
pub(crate) fn record(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
    if !device.is_cuda() {
        return Ok(None);
    }
    pool::graphs_change(device)?;
    let capture = Capture::begin(device)?;
    work()?;
    let Some(graph) = capture.end()? else { bail!("the driver has recorded nothing") };
    check(&graph)?;
    Ok(Some(Graph { graph, device: device.clone(), has_memory: false }))
}

/// An error if the graph would read or write the host's memory, which is another's by the time it is
/// launched, or would leave memory behind.
fn check(graph: &CudaGraph) -> Result<()> {
    let nodes: Vec<_> =
        nodes(graph)?.into_iter().map(|node| Ok((node, kind(node)?))).collect::<Result<_>>()?;
    // What the graph allocates. Nodes come in any order.
    let allocates = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEM_ALLOC;
    let own = nodes.iter().filter(|(_, kind)| *kind == allocates);
    let own: Vec<_> = own.map(|(node, _)| memory_of(*node)).collect::<Result<_>>()?;
    let mut kept = own.len() as isize;
    for (node, kind) in nodes {
        match kind {
            sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY => {
                let copy = copy_of(node)?;
                let sides =
                    [(copy.srcMemoryType, copy.srcDevice), (copy.dstMemoryType, copy.dstDevice)];
                if !sides.into_iter().all(|(kind, at)| is_on_device(kind, at, &own)) {
                    bail!("an op that copies between the host and the device cannot be recorded");
                }
            }
            sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_HOST => {
                bail!("an op that calls the host cannot be recorded")
            }
            sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEM_FREE => kept -= 1,
            _ => {}
        }
    }
    if kept != 0 {
        bail!("work that leaves tensors behind cannot be recorded");
    }
    Ok(())
}

/// Whether a side of a copy is the device's. Addresses of host and device are of one space, and a node may
/// leave it to the driver to know them apart.
fn is_on_device(kind: sys::CUmemorytype, at: u64, own: &[Range<u64>]) -> bool {
    match kind {
        sys::CUmemorytype::CU_MEMORYTYPE_DEVICE => true,
        sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED => {
            own.iter().any(|memory| memory.contains(&at)) || is_known_as_devices(at)
        }
        _ => false,
    }
}

/// Memory that the driver does not know is the host's.
fn is_known_as_devices(at: u64) -> bool {
    let mut kind = 0u32;
    let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    // SAFETY: the attribute is a number of 32 bits; nothing is read at the address.
    let asked = unsafe {
        sys::cuPointerGetAttribute((&raw mut kind).cast::<c_void>(), attribute, at).result()
    };
    asked.is_ok() && kind == sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32
}

/// Where what a node allocates lies.
fn memory_of(node: sys::CUgraphNode) -> Result<Range<u64>> {
    // SAFETY: numbers and pointers, for which zero is a value.
    let mut memory: MaybeUninit<sys::CUDA_MEM_ALLOC_NODE_PARAMS> = MaybeUninit::zeroed();
    // SAFETY: a node that allocates; all fields are written.
    let memory = unsafe {
        sys::cuGraphMemAllocNodeGetParams(node, memory.as_mut_ptr()).result().w()?;
        memory.assume_init()
    };
    Ok(memory.dptr..memory.dptr + memory.bytesize as u64)
}

fn nodes(graph: &CudaGraph) -> Result<Vec<sys::CUgraphNode>> {
    let mut count = 0;
    // SAFETY: without a place for them, the nodes are counted.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), ptr::null_mut(), &raw mut count) }
        .result()
        .w()?;
    let mut nodes = vec![ptr::null_mut(); count];
    // SAFETY: there is room for as many as there are.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &raw mut count) }
        .result()
        .w()?;
    nodes.truncate(count);
    Ok(nodes)
}

fn kind(node: sys::CUgraphNode) -> Result<sys::CUgraphNodeType> {
    let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: a node of a graph that is there.
    unsafe { sys::cuGraphNodeGetType(node, &raw mut kind) }.result().w()?;
    Ok(kind)
}

fn copy_of(node: sys::CUgraphNode) -> Result<sys::CUDA_MEMCPY3D> {
    // SAFETY: numbers and pointers, for which zero is a value; no kind of memory is 0.
    let mut copy: MaybeUninit<sys::CUDA_MEMCPY3D> = MaybeUninit::zeroed();
    // SAFETY: a node that copies; all fields are written.
    unsafe {
        sys::cuGraphMemcpyNodeGetParams(node, copy.as_mut_ptr()).result().w()?;
        Ok(copy.assume_init())
    }
}
