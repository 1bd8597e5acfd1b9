//! From tensors to the arguments of a kernel.
#![expect(unsafe_code, reason = "a kernel is given addresses")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    DevicePtr, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg, result,
};
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::{DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::pool;
use super::program::Program;

/// The type that the kernels would compute `tensors` in: that of all of them, if they lie on one
/// GPU.
pub(crate) fn gpu_dtype(tensors: &[&Tensor]) -> Option<DType> {
    let dtype = tensors[0].dtype();
    let fits = |t: &&Tensor| t.device().is_cuda() && t.dtype() == dtype;
    (tensors.iter().all(fits) && matches!(dtype, DType::F32 | DType::BF16)).then_some(dtype)
}

/// Whether the kernels of the GPU take all of these, in one type.
pub(crate) fn on_gpu(tensors: &[&Tensor]) -> bool {
    gpu_dtype(tensors).is_some()
}

/// An output that a kernel is about to fill.
pub(crate) fn empty(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    crate::memory::request(shape.elem_count() * dtype.size_in_bytes())?;
    // What the pool keeps may be in pieces that are too small.
    pool::ask(device, || {
        // SAFETY: every caller hands it to a kernel that writes all of it before anybody reads.
        unsafe { Tensor::empty(&shape, dtype, device) }
    })
}

/// A tensor of zeros, of memory that the pool may keep in pieces that are too small.
pub(crate) fn zeros(shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    pool::ask(device, || Tensor::zeros(shape, dtype, device))
}

/// Bytes that are no number in any type of floating point.
pub(crate) const NO_NUMBER: u8 = 0xff;

/// Has each byte of a contiguous tensor be this one.
pub(crate) fn fill(tensor: &Tensor, byte: u8) -> Result<()> {
    let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
    if bytes == 0 {
        return Ok(());
    }
    if !tensor.is_contiguous() {
        bail!("{tensor:?} to be filled");
    }
    let stream = tensor.device().as_cuda_device()?.cuda_stream();
    stream.context().bind_to_thread().w()?;
    // SAFETY: the tensor has so many bytes from its address on, and frees them on the same stream.
    unsafe { result::memset_d8_async(address(tensor)?, byte, bytes, stream.cu_stream()) }.w()
}

/// Where the first element of a tensor lies on its GPU. Its elements are contiguous from there on, or
/// the kernel is told its strides.
///
/// Whoever writes there changes what every tensor of the same storage sees. The address is good for
/// work that is handed to the device's stream while the tensor lives: freeing it goes to the same
/// stream.
pub(crate) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address_of(storage, layout),
        _ => bail!("a kernel of the GPU wants {tensor:?}, which is elsewhere"),
    }
}

fn address_of(storage: &CudaStorage, layout: &Layout) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    let begin = match &storage.slice {
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
        _ => bail!("no kernel of the GPU takes this dtype"),
    };
    let bytes = layout.start_offset() * BackendStorage::dtype(storage).size_in_bytes();
    Ok(begin + bytes as u64)
}

/// The address of a tensor that there may be none of: then null.
pub(crate) fn address_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}

/// How the names of kernels end that take elements of this type.
pub(crate) fn suffix(dtype: DType) -> &'static str {
    if dtype == DType::BF16 { "bf16" } else { "f32" }
}

/// Threads of a block that goes through rows of `width` elements, 16 bytes a thread: whole warps, at
/// most `most`.
pub(crate) fn threads_of_row(width: usize, dtype: DType, most: usize) -> usize {
    (width * dtype.size_in_bytes()).div_ceil(16).next_multiple_of(WARP).clamp(WARP, most)
}

/// Threads that go in step.
pub(crate) const WARP: usize = 32;

/// Dynamic shared memory that a block has without asking for more: of 48 KiB, a third is left to what
/// its source declares.
const USUAL_SHARED_BYTES: usize = 32 << 10;

/// A kernel and how many threads run it.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Program,
    pub(crate) kernel: String,
    /// `HEAD_DIM` of the source, where it is compiled for one.
    pub(crate) head_dim: Option<usize>,
    /// Blocks.
    pub(crate) grid: [usize; 3],
    /// Threads of a block.
    pub(crate) block: usize,
    /// Dynamic shared memory of a block, in bytes.
    pub(crate) shared: usize,
}

/// An argument of a kernel, by value: an address or a number.
pub(crate) trait Argument {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

impl<T: DeviceRepr> Argument for T {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

/// Numbers and addresses as the arguments of a kernel, which live as long as the list.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        [$(&$argument as &dyn $crate::cuda::launch::Argument),*]
    };
}
pub(super) use arguments;

impl Launch<'_> {
    /// Hands the kernel to the stream of `device`; nothing is waited for.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in their order and of their types, and every address
    /// among them has as many elements as the kernel touches.
    pub(crate) unsafe fn run(&self, device: &Device, arguments: &[&dyn Argument]) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let function = self.program.kernel(&self.kernel, self.head_dim, device)?;
        let shared = self.shared as u32;
        if self.shared > USUAL_SHARED_BYTES {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, self.shared as i32).w()?;
        }
        let [x, y, z] = self.grid.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (self.block as u32, 1, 1),
            shared_mem_bytes: shared,
        };
        let stream = device.as_cuda_device()?.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        for argument in arguments {
            argument.push(&mut launch);
        }
        // SAFETY: the caller's promise.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }
}
