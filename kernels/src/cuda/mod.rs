//! The GPU side: a device with a pool of its own, kernels in CUDA C++ (`kernels/cuda/`) that the
//! driver's compiler translates when they are first used, and products by cuBLAS.
//!
//! Everything goes to the device's one stream, in order. So a tensor may be freed as soon as the
//! work that reads it has been handed over, and no op waits for another one.

pub(crate) mod activation;
pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod cudnn;
pub(crate) mod decode_attention;
pub(crate) mod device;
pub(crate) mod download;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod gemm;
pub(crate) mod gemv;
pub(crate) mod graph;
pub(crate) mod later;
mod launch;
pub(crate) mod norm;
pub(crate) mod pool;
mod program;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rope_normed;
mod table;
mod upload;

pub(crate) use launch::{empty, on_gpu, zeros};

/// What [`crate::device`] asks of a GPU.
pub(crate) mod host {
    pub(crate) use super::cudnn::version as attention_library;
    pub(crate) use super::device::{count, free_and_total, open, uuid};
    pub(crate) use super::pool::{read, reset_high_water, trim};
    pub(crate) use super::upload::upload;
}
