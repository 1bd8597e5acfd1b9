//! CUDA C++ sources, and the kernels in them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaFunction;
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{Device, Error, Result};

use super::device::capability;

macro_rules! header {
    ($name:literal) => {
        ($name, include_str!(concat!("../../cuda/", $name)))
    };
}

/// What sources include, by name.
const HEADERS: [(&str, &str); 9] = [
    header!("attention_tiles.cuh"),
    header!("codes.cuh"),
    header!("column_sums.cuh"),
    header!("common.cuh"),
    header!("mma.cuh"),
    header!("packs.cuh"),
    header!("philox.cuh"),
    header!("reduce.cuh"),
    header!("tensors.cuh"),
];

/// The source `kernels/cuda/NAME.cu`.
macro_rules! source {
    ($name:literal) => {
        $crate::cuda::program::Program {
            name: $name,
            source: include_str!(concat!("../../cuda/", $name, ".cu")),
        }
    };
}
pub(super) use source;

/// A source file.
#[derive(Debug)]
pub(crate) struct Program {
    /// Without its ending.
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
}

/// Compiled sources by module and compute capability: the driver's compiler takes up to a second for
/// one.
static COMPILED: Mutex<BTreeMap<(String, u32), String>> = Mutex::new(BTreeMap::new());

impl Program {
    /// A kernel of this program, compiled for `device` if it was not yet.
    pub(crate) fn kernel(
        &self,
        name: &str,
        head_dim: Option<usize>,
        device: &Device,
    ) -> Result<CudaFunction> {
        let module =
            head_dim.map_or_else(|| self.name.to_owned(), |dim| format!("{}_{dim}", self.name));
        let ptx = self.ptx(&module, head_dim, device)?;
        let cuda = device.as_cuda_device()?;
        Ok(cuda.get_or_load_custom_func(name, &module, &ptx)?.into_cuda_function())
    }

    fn ptx(&self, module: &str, head_dim: Option<usize>, device: &Device) -> Result<String> {
        let capability = capability(device)?;
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ptx) = compiled.get(&(module.to_owned(), capability)) {
            return Ok(ptx.clone());
        }
        let mut options = vec![
            format!("--gpu-architecture=compute_{capability}"),
            "--std=c++17".to_owned(),
            // Only what is written as one is one instruction.
            "--fmad=false".to_owned(),
        ];
        options.extend(head_dim.map(|dim| format!("-DHEAD_DIM={dim}")));
        let name = Some(format!("{}.cu", self.name));
        let options = CompileOptions { name, options, ..CompileOptions::default() };
        let ptx = compile_ptx_with_opts(with_headers(self.source), options)
            .w()
            .map_err(|error| Error::context(error, format!("compiling {}.cu", self.name)))?
            .to_src();
        compiled.insert((module.to_owned(), capability), ptx.clone());
        Ok(ptx)
    }
}

/// A source with the text of its headers in the place of their names, each once: the driver's
/// compiler sees no files.
fn with_headers(source: &str) -> String {
    let mut seen = Vec::new();
    expanded(source, &mut seen)
}

fn expanded(source: &str, seen: &mut Vec<&'static str>) -> String {
    let mut text = String::with_capacity(source.len());
    for line in source.lines() {
        let included = line.strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        match HEADERS.iter().find(|(name, _)| Some(*name) == included) {
            Some((name, _)) if seen.contains(name) => {}
            Some((name, header)) => {
                seen.push(name);
                text += &expanded(header, seen);
            }
            None => text += line,
        }
        text.push('\n');
    }
    text
}
