//! Runs the kernels of a source on the CPU, with the header in `kernels/cuda/emulator`.
#![expect(unsafe_code, reason = "calls into a library that was just compiled")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use bytemuck::Pod;
use libloading::{Library, Symbol};

use crate::buffer::Buffer;
use crate::sources::{FOLDER, source};

/// A source as a library for the CPU.
pub(crate) struct Program {
    /// Locked by a launch: there is one at a time.
    library: Mutex<Library>,
}

/// A program that whoever comes first compiles.
type Compiled = Arc<OnceLock<Arc<Program>>>;

type EmulatorLaunch = unsafe extern "C" fn(
    name: *const c_char,
    grid: *const u32,
    block: *const u32,
    shared_bytes: usize,
    arguments: *mut *mut c_void,
    sizes: *const usize,
    count: usize,
    order: u32,
) -> *const c_char;

/// The C++ compiler of this machine.
static COMPILER: LazyLock<Option<&str>> = LazyLock::new(|| {
    let answers = |compiler: &&str| {
        let version = Command::new(compiler).arg("--version").output();
        version.is_ok_and(|version| version.status.success())
    };
    ["c++", "g++", "clang++"].into_iter().find(answers)
});

/// The kernels of a source of `kernels/cuda`; none, and a line that says so, where there is no C++
/// compiler.
pub(crate) fn program(name: &str) -> Option<Arc<Program>> {
    program_for(name, 0)
}

/// The same, for heads of this dimension.
pub(crate) fn program_for(name: &str, head_dim: usize) -> Option<Arc<Program>> {
    static PROGRAMS: Mutex<BTreeMap<(String, usize), Compiled>> = Mutex::new(BTreeMap::new());
    let compiler = compiler()?;
    let key = (name.to_owned(), head_dim);
    let program = PROGRAMS.lock().expect("no panic").entry(key).or_default().clone();
    let compiled = || {
        let source = source(name);
        let text = format!("{}#include \"{name}.cu\"\n", source.definition(head_dim));
        Arc::new(compiled(compiler, &text, source.kernels))
    };
    Some(program.get_or_init(compiled).clone())
}

fn compiler() -> Option<&'static str> {
    if COMPILER.is_none() {
        eprintln!(
            "skipped: no C++ compiler (c++, g++, clang++) to run CUDA kernels on the CPU with"
        );
    }
    *COMPILER
}

/// Loads that are not aligned, and indices outside of an array, end the process.
const FLAGS: [&str; 13] = [
    "-std=c++17",
    "-Og",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds",
    "-fsanitize-undefined-trap-on-error",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    "-xc++",
    "-",
];

fn compiled(compiler: &str, text: &str, kernels: &[&str]) -> Program {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("kernels.so");
    let listed: Vec<String> = kernels.iter().map(|name| format!("EMULATED({name})")).collect();
    let text = format!(
        "#include \"emulator/emulator.h\"\n{text}\nEMULATED_KERNELS = {{{}}};\n",
        listed.join(", ")
    );
    let mut child = Command::new(compiler)
        .args(["-I", FOLDER, "-o"])
        .arg(&library)
        .args(FLAGS)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a compiler that starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("a compiler that reads");
    drop(input);
    let output = child.wait_with_output().expect("a compiler that ends");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && messages.is_empty(), "{messages}");
    // SAFETY: what runs when it is loaded are constructors of the emulator's own variables. It stays
    // loaded when its file is gone.
    let library = unsafe { Library::new(&library) }.expect("a library");
    Program { library: Mutex::new(library) }
}

impl Program {
    pub(crate) fn launch(&self, kernel: &str, grid: [usize; 3], block: usize) -> Launch<'_> {
        Launch {
            program: self,
            kernel: CString::new(kernel).expect("a name"),
            grid: grid.map(|blocks| blocks as u32),
            block: [block as u32, 1, 1],
            shared_bytes: 0,
            arguments: Vec::new(),
            buffers: Vec::new(),
        }
    }
}

/// A kernel with its arguments, in their order.
pub(crate) struct Launch<'a> {
    program: &'a Program,
    kernel: CString,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: usize,
    arguments: Vec<Argument>,
    buffers: Vec<&'a Buffer>,
}

/// A value, aligned for any type.
#[derive(Clone)]
struct Argument {
    words: Vec<u128>,
    bytes: usize,
}

/// Orders of blocks, warps and lanes: as they are, backwards, shuffled. Odd ones make asynchronous
/// copies at once, even ones at last.
const ORDERS: [u32; 3] = [0, 1, 20_261];

impl<'a> Launch<'a> {
    /// Bytes of dynamic shared memory.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// The next argument, a buffer.
    pub(crate) fn buffer(self, buffer: &'a Buffer) -> Self {
        self.reaches(buffer).value(buffer.address())
    }

    /// The next argument, a buffer or null.
    pub(crate) fn optional(self, buffer: Option<&'a Buffer>) -> Self {
        match buffer {
            Some(buffer) => self.buffer(buffer),
            None => self.value(0u64),
        }
    }

    /// The next argument, by value.
    pub(crate) fn value<T: Pod>(mut self, value: T) -> Self {
        let bytes = size_of::<T>();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        bytemuck::cast_slice_mut(&mut words)[..bytes].copy_from_slice(bytemuck::bytes_of(&value));
        self.arguments.push(Argument { words, bytes });
        self
    }

    /// The next argument, a buffer from this byte on.
    pub(crate) fn buffer_from(self, buffer: &'a Buffer, byte: usize) -> Self {
        self.reaches(buffer).value(buffer.address() + byte as u64)
    }

    /// A buffer that the kernel finds through another one.
    pub(crate) fn reaches(mut self, buffer: &'a Buffer) -> Self {
        self.buffers.push(buffer);
        self
    }

    /// Runs it in several orders, which must all leave the same bits.
    pub(crate) fn run(self) {
        let before: Vec<_> = self.buffers.iter().map(|buffer| buffer.copy()).collect();
        let mut first = None;
        for order in ORDERS {
            self.buffers.iter().zip(&before).for_each(|(buffer, copy)| buffer.restore(copy));
            if let Err(fault) = self.run_once(order) {
                panic!("{fault}");
            }
            let kernel = &self.kernel;
            let sound = self.buffers.iter().all(|buffer| buffer.is_sound());
            assert!(sound, "{kernel:?} wrote outside of its buffers");
            let after: Vec<_> = self.buffers.iter().map(|buffer| buffer.copy()).collect();
            let first = first.get_or_insert_with(|| after.clone());
            assert!(*first == after, "{kernel:?} depends on the order of its threads");
        }
    }

    /// Runs it once; what went wrong is a message.
    pub(crate) fn run_once(&self, order: u32) -> Result<(), String> {
        let mut arguments = self.arguments.clone();
        let sizes: Vec<usize> = arguments.iter().map(|argument| argument.bytes).collect();
        let mut pointers: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| argument.words.as_mut_ptr().cast()).collect();
        let library = self.program.library.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the entry point has this type in the emulator's header. It checks the sizes of the
        // arguments, and the buffers that they point to live as long as this launch.
        let fault = unsafe {
            let launch: Symbol<EmulatorLaunch> =
                library.get(b"emulator_launch\0").expect("the entry point");
            let fault = launch(
                self.kernel.as_ptr(),
                self.grid.as_ptr(),
                self.block.as_ptr(),
                self.shared_bytes,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len(),
                order,
            );
            (!fault.is_null()).then(|| CStr::from_ptr(fault).to_string_lossy().into_owned())
        };
        fault.map_or(Ok(()), Err)
    }
}

/// What a GPU would do something unspecified with is found out.
mod tests {
    use super::{Buffer, OnceLock, Program, compiled, compiler};

    const TEXT: &str = r#"
        #include "mma.cuh"
        extern "C" __global__ void half_at_a_barrier(u32* y) {
            if (threadIdx.x < 16) __syncthreads();
            y[threadIdx.x] = 1;
        }
        extern "C" __global__ void half_in_an_exchange(u32* y) {
            if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1u, 1);
        }
        extern "C" __global__ void without_a_barrier(u32* y) {
            __shared__ u32 numbers[WARP];
            numbers[threadIdx.x] = threadIdx.x;
            y[threadIdx.x] = numbers[(threadIdx.x + 1) % WARP];
        }
        extern "C" __global__ void beside_its_shared_memory(u32* y) {
            dynamic_shared<u32>()[threadIdx.x + 1] = 1;
            y[threadIdx.x] = 1;
        }
        extern "C" __global__ void beside_a_multiple(u32* y) {
            copy_later(dynamic_shared<u32>(), y + 1, false);
        }
        extern "C" __global__ void beside_its_buffer(u32* y) { y[threadIdx.x + 1] = 1; }
        extern "C" __global__ void sum_of_lanes(u32* y) {
            u32 sum = threadIdx.x;
            for (u32 lane = 1; lane < WARP; lane *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lane);
            __shared__ u32 sums[2];
            sums[threadIdx.x / WARP] = sum;
            __syncthreads();
            y[threadIdx.x] = sums[0] + sums[1];
        }
    "#;

    const KERNELS: [&str; 7] = [
        "half_at_a_barrier",
        "half_in_an_exchange",
        "without_a_barrier",
        "beside_its_shared_memory",
        "beside_a_multiple",
        "beside_its_buffer",
        "sum_of_lanes",
    ];

    fn program() -> Option<&'static Program> {
        static PROGRAM: OnceLock<Program> = OnceLock::new();
        let compiler = compiler()?;
        Some(PROGRAM.get_or_init(|| compiled(compiler, TEXT, &KERNELS)))
    }

    #[test]
    fn barriers_and_exchanges_are_exact() {
        let Some(program) = program() else { return };
        let y = Buffer::unset::<u32>(64);
        program.launch("sum_of_lanes", [1, 1, 1], 64).buffer(&y).run();
        assert_eq!(y.values::<u32>(), [63 * 32; 64]);
    }

    #[test]
    fn what_is_unspecified_is_refused() {
        let Some(program) = program() else { return };
        let y = Buffer::unset::<u32>(32);
        let fault = |kernel: &str| {
            let launch = program.launch(kernel, [1, 1, 1], 32).shared(128).buffer(&y);
            launch.run_once(0).expect_err("a fault")
        };
        assert_eq!(
            fault("half_at_a_barrier"),
            "half_at_a_barrier: threads wait for others that have left"
        );
        assert_eq!(
            fault("half_in_an_exchange"),
            "half_in_an_exchange: threads wait for others that have left"
        );
        assert_eq!(
            fault("beside_its_shared_memory"),
            "beside_its_shared_memory: written outside of the shared memory"
        );
        assert_eq!(
            fault("beside_a_multiple"),
            "beside_a_multiple: a copy that does not lie as it must"
        );
        assert_eq!(fault("another"), "another: no such kernel");
        let launch = program.launch("sum_of_lanes", [1, 1, 1], 32).buffer(&y).value(1u32);
        let fault = launch.run_once(0).expect_err("a fault");
        assert_eq!(fault, "sum_of_lanes: other arguments than the kernel's");
    }

    #[test]
    #[should_panic(expected = "wrote outside of its buffers")]
    fn a_guard_that_was_written_to_is_seen() {
        let Some(program) = program() else { panic!("wrote outside of its buffers: not tried") };
        let y = Buffer::unset::<u32>(32);
        program.launch("beside_its_buffer", [1, 1, 1], 32).buffer(&y).run();
    }

    #[test]
    #[should_panic(expected = "depends on the order of its threads")]
    fn a_missing_barrier_is_seen() {
        let Some(program) = program() else {
            panic!("depends on the order of its threads: not tried")
        };
        let y = Buffer::unset::<u32>(32);
        program.launch("without_a_barrier", [1, 1, 1], 32).buffer(&y).run();
    }
}
