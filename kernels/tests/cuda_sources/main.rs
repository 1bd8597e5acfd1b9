//! The CUDA sources, proven without a GPU: each kernel runs on the CPU, where its numbers are held
//! against the crate's own ops, and every source is compiled for every architecture if there is a
//! compiler for them.

mod activation;
mod adamw;
mod attention;
mod buffer;
mod compare;
mod cross_entropy;
mod decode_attention;
mod elementwise;
mod embedding;
mod emulator;
mod gemv;
mod norm;
mod ptx;
mod rms_norm;
mod rope;
mod sources;
