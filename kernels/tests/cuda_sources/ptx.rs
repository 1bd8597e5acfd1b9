//! Compiles the sources as they are compiled on a machine with a GPU, for every architecture.
#![expect(unsafe_code, reason = "calls into libnvrtc")]

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::sources::{FOLDER, SOURCES};

const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// libnvrtc.
struct Compiler {
    library: Library,
    /// What it opens when it compiles.
    _builtins: Vec<Library>,
}

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Handle,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Handle) -> c_int;
type CountArchitectures = unsafe extern "C" fn(*mut c_int) -> c_int;
type Architectures = unsafe extern "C" fn(*mut c_int) -> c_int;

impl Compiler {
    /// That of `CHANDLER_NVRTC`, or the one that the machine has.
    fn open() -> Option<Self> {
        let named = std::env::var_os("CHANDLER_NVRTC").map(PathBuf::from);
        let usual = [
            "libnvrtc.so",
            "libnvrtc.so.13",
            "libnvrtc.so.12",
            "/usr/local/cuda/lib64/libnvrtc.so",
        ];
        let names = named.into_iter().chain(usual.map(PathBuf::from));
        names.into_iter().find_map(|name| {
            let builtins = builtins_beside(&name);
            // SAFETY: NVIDIA's library does nothing when it is loaded.
            let library = unsafe { Library::new(&name) }.ok()?;
            Some(Self { library, _builtins: builtins })
        })
    }

    fn architectures(&self) -> BTreeSet<u32> {
        // SAFETY: these are the types of nvrtc.h, and the list is as long as it said.
        unsafe {
            let (mut count, mut list) = (0, Vec::new());
            let count_them = self.library.get::<CountArchitectures>(b"nvrtcGetNumSupportedArchs\0");
            count_them.expect("a function")(&raw mut count);
            list.resize(count as usize, 0);
            let get = self.library.get::<Architectures>(b"nvrtcGetSupportedArchs\0");
            get.expect("a function")(list.as_mut_ptr());
            list.into_iter().map(|architecture| architecture as u32).collect()
        }
    }

    /// PTX, or what the compiler says against it; warnings too are said against it.
    fn ptx(
        &self,
        text: &str,
        headers: &[(String, String)],
        architecture: u32,
    ) -> Result<String, String> {
        let owned = |text: &str| CString::new(text).expect("no zeros");
        let text = owned(text);
        let (names, texts): (Vec<CString>, Vec<CString>) =
            headers.iter().map(|(name, text)| (owned(name), owned(text))).unzip();
        let pointers = |of: &[CString]| of.iter().map(|one| one.as_ptr()).collect::<Vec<_>>();
        let mut options: Vec<CString> = OPTIONS.map(owned).into();
        options.push(owned(&format!("--gpu-architecture=compute_{architecture}")));
        // SAFETY: these are the types of nvrtc.h, and every text lives until the program is gone.
        unsafe {
            let library = &self.library;
            let mut program = ptr::null_mut();
            let create = library.get::<Create>(b"nvrtcCreateProgram\0").expect("a function");
            create(
                &raw mut program,
                text.as_ptr(),
                c"source.cu".as_ptr(),
                names.len() as c_int,
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            );
            let compile = library.get::<Compile>(b"nvrtcCompileProgram\0").expect("a function");
            let failed = compile(program, options.len() as c_int, pointers(&options).as_ptr()) != 0;
            let log = self.text(program, [b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0"]);
            let ptx =
                (!failed).then(|| self.text(program, [b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0"]));
            let destroy = library.get::<Destroy>(b"nvrtcDestroyProgram\0").expect("a function");
            destroy(&raw mut program);
            ptx.filter(|_| log.trim().is_empty()).ok_or(log)
        }
    }

    unsafe fn text(&self, program: Handle, [size, text]: [&[u8]; 2]) -> String {
        // SAFETY: the caller's program lives, and the buffer is as long as it said.
        unsafe {
            let mut bytes = 0;
            self.library.get::<Size>(size).expect("a function")(program, &raw mut bytes);
            let mut buffer = vec![0u8; bytes.max(1)];
            self.library.get::<Text>(text).expect("a function")(
                program,
                buffer.as_mut_ptr().cast(),
            );
            buffer.pop();
            String::from_utf8_lossy(&buffer).into_owned()
        }
    }
}

/// libnvrtc opens another library by its bare name, which is found if it is open already.
fn builtins_beside(nvrtc: &Path) -> Vec<Library> {
    let folder = nvrtc.parent().and_then(|folder| fs::read_dir(folder).ok());
    let files = folder.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_builtins = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so") && path.is_absolute()
    };
    // SAFETY: NVIDIA's library does nothing when it is loaded.
    files.filter(is_builtins).filter_map(|path| unsafe { Library::new(path) }.ok()).collect()
}

fn headers() -> Vec<(String, String)> {
    let entries = fs::read_dir(FOLDER).expect("the folder of the sources");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let header = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let is_header = name.ends_with(".cuh");
        is_header.then(|| (name, fs::read_to_string(&path).expect("a header")))
    };
    paths.filter_map(header).collect()
}

fn entries(ptx: &str) -> BTreeSet<&str> {
    let entry = |line| str::strip_prefix(line, ".visible .entry ");
    ptx.lines().filter_map(entry).map(|rest| rest.trim_end_matches('(')).collect()
}

/// What must hold of the PTX of any source: its kernels, all of them, and no sum in an order that
/// nobody knows.
fn check(name: &str, kernels: &[&str], ptx: &str) {
    assert_eq!(entries(ptx), kernels.iter().copied().collect(), "kernels of {name}");
    for line in ptx.lines() {
        let instruction = line.trim_start();
        let atomic = ["atom.", "red."].iter().any(|name| instruction.starts_with(name));
        assert!(!atomic, "{name}: {line}");
    }
    // The arithmetic of the CPU to the bit: products are rounded before they are added.
    assert!(name != "adamw" || !ptx.contains("fma.rn.f32"), "{name} multiplies and adds at once");
}

/// Says that something is not looked at here; what a test prints that passes is shown to nobody.
fn skipped(what: &str) {
    std::io::stderr()
        .write_all(format!("SKIPPED: {what}\n").as_bytes())
        .expect("the standard error");
}

/// Compiles every source for one architecture; those for a dimension of a head for each of these.
fn compiles(architecture: u32, head_dims: &[usize]) {
    let Some(compiler) = Compiler::open() else {
        return skipped("no libnvrtc to compile CUDA sources with (CHANDLER_NVRTC names one)");
    };
    if !compiler.architectures().contains(&architecture) {
        return skipped(&format!("this libnvrtc does not know sm_{architecture}"));
    }
    let headers = headers();
    for source in SOURCES {
        let text = fs::read_to_string(format!("{FOLDER}/{}.cu", source.name)).expect("a source");
        let head_dims = if source.of_head_dim { head_dims } else { &[0] };
        for head_dim in head_dims {
            let text = source.definition(*head_dim) + &text;
            match compiler.ptx(&text, &headers, architecture) {
                Ok(ptx) => check(source.name, source.kernels, &ptx),
                Err(log) => panic!("{} for sm_{architecture}: {log}", source.name),
            }
        }
    }
}

// Between them, heads of every dimension that models have.

#[test]
fn sm_80_takes_every_source() {
    compiles(80, &[64]);
}

#[test]
fn sm_86_takes_every_source() {
    compiles(86, &[80]);
}

#[test]
fn sm_89_takes_every_source() {
    compiles(89, &[96]);
}

#[test]
fn sm_90_takes_every_source() {
    compiles(90, &[128]);
}

#[test]
fn sm_100_takes_every_source() {
    compiles(100, &[256]);
}

#[test]
fn sm_120_takes_every_source() {
    compiles(120, &[128]);
}
