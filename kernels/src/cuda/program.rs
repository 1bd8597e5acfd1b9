//! CUDA C++ sources, and the kernels in them.
#![expect(unsafe_code, reason = "asks the compiler for its release")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{self, CudaFunction};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, sys};
use candle_core::cuda_backend::{DeviceId, WrapErr};
use candle_core::{Device, Error, Result};

use super::device::capability;
use crate::device::translation;

macro_rules! header {
    ($name:literal) => {
        ($name, include_str!(concat!("../../cuda/", $name)))
    };
}

/// What sources include, by name.
const HEADERS: [(&str, &str); 10] = [
    header!("attention_tiles.cuh"),
    header!("codes.cuh"),
    header!("column_sums.cuh"),
    header!("common.cuh"),
    header!("mma.cuh"),
    header!("packs.cuh"),
    header!("philox.cuh"),
    header!("reduce.cuh"),
    header!("rotation.cuh"),
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

/// Kernels that were loaded, by device, module and name: a step asks for each of them again and again.
static LOADED: Mutex<Vec<(DeviceId, Module)>> = Mutex::new(Vec::new());

/// A compiled source on a device, and the kernels of it that were asked for.
struct Module {
    program: &'static str,
    head_dim: Option<usize>,
    /// Of the two, as candle keeps it.
    name: String,
    ptx: String,
    functions: BTreeMap<String, CudaFunction>,
}

impl Program {
    /// A kernel of this program, compiled for `device` if it was not yet.
    pub(crate) fn kernel(
        &self,
        name: &str,
        head_dim: Option<usize>,
        device: &Device,
    ) -> Result<CudaFunction> {
        let cuda = device.as_cuda_device()?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = |(id, module): &&mut (DeviceId, Module)| {
            *id == cuda.id() && module.program == self.name && module.head_dim == head_dim
        };
        let module = match loaded.iter_mut().find(is_this) {
            Some((_, module)) => module,
            None => {
                let module = Module {
                    program: self.name,
                    head_dim,
                    name: format!("{}_{}", self.name, head_dim.unwrap_or(0)),
                    ptx: self.ptx(head_dim, device)?,
                    functions: BTreeMap::new(),
                };
                loaded.push((cuda.id(), module));
                &mut loaded.last_mut().expect("it was pushed").1
            }
        };
        if let Some(function) = module.functions.get(name) {
            return Ok(function.clone());
        }
        let function = cuda.get_or_load_custom_func(name, &module.name, &module.ptx)?;
        let function = function.into_cuda_function();
        module.functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    fn ptx(&self, head_dim: Option<usize>, device: &Device) -> Result<String> {
        let mut options = vec![
            format!("--gpu-architecture=compute_{}", capability(device)?),
            "--std=c++17".to_owned(),
            // Only what is written as one is one instruction.
            "--fmad=false".to_owned(),
        ];
        options.extend(head_dim.map(|dim| format!("-DHEAD_DIM={dim}")));
        let source = with_headers(self.source);
        let of = format!("// NVRTC {} {}\n{source}", compiler()?, options.join(" "));
        translation(&of, || {
            check_driver()?;
            let name = Some(format!("{}.cu", self.name));
            let options = CompileOptions { name, options, ..CompileOptions::default() };
            let compiled = compile_ptx_with_opts(source, options).w();
            let compiled = compiled
                .map_err(|error| Error::context(error, format!("compiling {}.cu", self.name)))?;
            Ok(compiled.to_src())
        })
    }
}

/// The release of NVRTC, which makes PTX of the sources.
fn compiler_release() -> Result<[i32; 2]> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are places for a number.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(Error::wrap)?;
    Ok([major, minor])
}

fn compiler() -> Result<String> {
    compiler_release().map(|[major, minor]| format!("{major}.{minor}"))
}

/// An error where the driver is for an earlier release of CUDA than the compiler: it takes no PTX of
/// a later one than its own.
fn check_driver() -> Result<()> {
    let mut number = 0;
    // SAFETY: a place for a number.
    unsafe { driver::sys::cuDriverGetVersion(&raw mut number) }.result().w()?;
    newer_than_driver(compiler_release()?, [number / 1000, number % 1000 / 10])
}

fn newer_than_driver(compiler: [i32; 2], driver: [i32; 2]) -> Result<()> {
    if compiler <= driver {
        return Ok(());
    }
    let [major, minor] = compiler;
    let [driver_major, driver_minor] = driver;
    candle_core::bail!(
        "NVRTC {major}.{minor} is newer than the driver, which is for CUDA {driver_major}.{driver_minor}: \
         update the driver, or let an NVRTC of CUDA {driver_major}.{driver_minor} be found first \
         (LD_LIBRARY_PATH)"
    )
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

#[cfg(test)]
mod tests {
    use super::newer_than_driver;

    #[test]
    fn a_compiler_that_is_newer_than_the_driver_is_refused_by_name() {
        assert!(newer_than_driver([13, 0], [13, 0]).is_ok());
        assert!(newer_than_driver([12, 9], [13, 0]).is_ok());
        let words = newer_than_driver([13, 2], [13, 0]).unwrap_err().to_string();
        assert!(words.starts_with("NVRTC 13.2 is newer than the driver, which is for CUDA 13.0: "));
        assert!(newer_than_driver([13, 0], [12, 8]).is_err());
    }
}
