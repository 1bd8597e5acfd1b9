//! Matrix products by cuBLAS, which can add to what is there and write f32 from bf16 factors.
#![expect(unsafe_code, reason = "calls into cuBLAS")]

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::result as driver;
use candle_core::cuda_backend::{CudaError, WrapErr};
use candle_core::{DType, Device, Error, Result, Tensor, bail};

use super::device::{capability, free_and_total};
use super::launch::address;
use super::pool;

/// Whether a factor lies in memory as the formula has it, or the other way around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lies {
    AsWritten,
    Transposed,
}

/// What becomes of what the product is written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    Replaced,
    AddedTo,
}

/// A factor of a product.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    /// Keeps the memory.
    tensor: Tensor,
    dtype: DType,
    /// Rows and columns as they lie in memory.
    rows: usize,
    columns: usize,
    /// Elements from row to row.
    leading: usize,
    lies: Lies,
}

impl Factor {
    pub(crate) fn new(tensor: &Tensor) -> Result<Self> {
        Self::of(tensor, Lies::AsWritten)
    }

    pub(crate) fn transposed(tensor: &Tensor) -> Result<Self> {
        Self::of(tensor, Lies::Transposed)
    }

    fn of(tensor: &Tensor, lies: Lies) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        let is_in_rows = tensor.stride()[1] == 1 && tensor.stride()[0] >= columns;
        let tensor = if is_in_rows { tensor.clone() } else { tensor.contiguous()? };
        let (dtype, leading) = (tensor.dtype(), tensor.stride()[0].max(columns));
        Ok(Self { tensor, dtype, rows, columns, leading, lies })
    }

    /// bf16 that a kernel has written over the f32 of `tensor [rows, columns]`, each row where it
    /// began.
    pub(crate) fn bf16_over(tensor: &Tensor) -> Result<Self> {
        let factor = Self::of(tensor, Lies::AsWritten)?;
        Ok(Self { dtype: DType::BF16, leading: 2 * factor.leading, ..factor })
    }

    #[must_use]
    pub(crate) fn turned(self) -> Self {
        let lies = match self.lies {
            Lies::AsWritten => Lies::Transposed,
            Lies::Transposed => Lies::AsWritten,
        };
        Self { lies, ..self }
    }

    /// Rows and columns as the formula has them.
    fn shape(&self) -> [usize; 2] {
        match self.lies {
            Lies::AsWritten => [self.rows, self.columns],
            Lies::Transposed => [self.columns, self.rows],
        }
    }
}

/// `product = a · b`, or that added to what `product [m, n]` holds, rounded once. Factors are both f32
/// or both bf16; a product of bf16 factors may be either.
pub(crate) fn multiply(product: &Tensor, a: &Factor, b: &Factor, before: Before) -> Result<()> {
    let ([m, k], [depth, n]) = (a.shape(), b.shape());
    let same = a.dtype == b.dtype;
    if !same || k != depth || product.dims() != [m, n] || !product.is_contiguous() {
        bail!("a product {:?} of {a:?} and {b:?}", product.dims());
    }
    if m * n == 0 || (k == 0 && before == Before::AddedTo) {
        return Ok(());
    }
    if k == 0 {
        return product.slice_set(&product.zeros_like()?, 0, 0);
    }
    // The library may load a kernel, which takes memory that the pool may keep for nobody.
    pool::ask(product.device(), || hand_over(product, a, b, before))
}

fn hand_over(product: &Tensor, a: &Factor, b: &Factor, before: Before) -> Result<()> {
    let ([m, k], [_, n]) = (a.shape(), b.shape());
    let (factor, sum) = (data_type(a.dtype)?, data_type(product.dtype())?);
    let [a_address, b_address] = [address(&a.tensor)?, address(&b.tensor)?];
    let (alpha, beta) = (1f32, if before == Before::AddedTo { 1f32 } else { 0.0 });
    // The library looks at the thread's context, which is another card's on a thread that has worked
    // with none.
    product.device().as_cuda_device()?.cuda_stream().context().bind_to_thread().w()?;
    // Held to the end of the call.
    let blas = product.device().as_cuda_device()?.cublas_handle();
    // cuBLAS counts down the columns: what is [m, n] here is [n, m] there, and the factors change
    // places.
    // SAFETY: the addresses are of tensors of these shapes, whose rows are `leading` elements apart;
    // alpha and beta are read before the call returns.
    let done = unsafe {
        result::gemm_ex(
            *blas.handle(),
            operation(b.lies),
            operation(a.lies),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast::<c_void>(),
            b_address as *const c_void,
            factor,
            b.leading as i32,
            a_address as *const c_void,
            factor,
            a.leading as i32,
            (&raw const beta).cast::<c_void>(),
            address(product)? as *mut c_void,
            sum,
            n as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    done.map_err(|error| understood(error, product.device()))
}

/// Bytes that must be free for the library to load whatever it wants.
const TO_LOAD: u64 = 64 << 20;

/// What the library says as an error: where next to nothing is free, some of its words stand for that.
fn understood(error: result::CublasError, device: &Device) -> Error {
    use sys::cublasStatus_t as Status;
    let vague = matches!(
        error.0,
        Status::CUBLAS_STATUS_NOT_INITIALIZED
            | Status::CUBLAS_STATUS_INVALID_VALUE
            | Status::CUBLAS_STATUS_INTERNAL_ERROR
    );
    let free = free_and_total(device).map(|(free, _)| free);
    match free.filter(|free| vague && *free < TO_LOAD) {
        Some(free) => Error::Cuda(
            format!("OUT_OF_MEMORY: {error}, and of the GPU's memory {free} bytes are free").into(),
        ),
        None => CudaError::from(error).into(),
    }
}

/// Has sums added in f32 to their end: where a long sum is cut into parts, the library may else add
/// these in the type of the product, which is then rounded more than once.
pub(super) fn round_once(device: &Device) -> Result<()> {
    let blas = device.as_cuda_device()?.cublas_handle();
    let mode = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is there.
    unsafe { sys::cublasSetMathMode(*blas.handle(), mode) }.result().w()
}

/// Gives the library memory to work in, as NVIDIA recommends for streams that are recorded. Without it, it
/// allocates in the midst of its work, and each recorded step has memory of its own for that.
///
/// It lies beside the pool and its limit, and is the library's until the process ends, as the pool is.
pub(super) fn give_workspace(device: &Device) -> Result<()> {
    let bytes = workspace_bytes(capability(device)?);
    device.as_cuda_device()?.cuda_stream().context().bind_to_thread().w()?;
    let blas = device.as_cuda_device()?.cublas_handle();
    // SAFETY: the thread has the device's context; the memory is freed by nobody.
    unsafe {
        let memory = driver::malloc_sync(bytes).w()?;
        sys::cublasSetWorkspace_v2(*blas.handle(), memory as *mut c_void, bytes).result().w()
    }
}

/// What NVIDIA recommends, or more: 32 MiB from compute capability 9.0 on, 4 MiB before.
fn workspace_bytes(capability: u32) -> usize {
    if capability >= 90 { 32 << 20 } else { 8 << 20 }
}

fn operation(lies: Lies) -> sys::cublasOperation_t {
    match lies {
        Lies::AsWritten => sys::cublasOperation_t::CUBLAS_OP_N,
        Lies::Transposed => sys::cublasOperation_t::CUBLAS_OP_T,
    }
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType_t::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType_t::CUDA_R_16BF),
        other => bail!("no product on the GPU in {other:?}"),
    }
}
