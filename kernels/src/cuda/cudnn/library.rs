//! The library, found when the program runs: chandler starts without it.
#![expect(unsafe_code, reason = "calls into a C library")]

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use candle_core::{Result, bail};

/// A descriptor or a handle of the library's.
pub(super) type Raw = *mut c_void;

/// The first release whose attention has documents of any lengths in both passes.
const OLDEST: usize = 92_800;
/// What the library answers when all went well.
const SUCCESS: i32 = 0;

/// The functions that are called, as NVIDIA's header declares them.
pub(super) struct Functions {
    pub(super) create: unsafe extern "C" fn(*mut Raw) -> i32,
    pub(super) set_stream: unsafe extern "C" fn(Raw, *mut c_void) -> i32,
    pub(super) create_descriptor: unsafe extern "C" fn(i32, *mut Raw) -> i32,
    pub(super) destroy_descriptor: unsafe extern "C" fn(Raw) -> i32,
    pub(super) set_attribute: unsafe extern "C" fn(Raw, i32, i32, i64, *const c_void) -> i32,
    pub(super) get_attribute:
        unsafe extern "C" fn(Raw, i32, i32, i64, *mut i64, *mut c_void) -> i32,
    pub(super) finalize: unsafe extern "C" fn(Raw) -> i32,
    pub(super) execute: unsafe extern "C" fn(Raw, Raw, Raw) -> i32,
    last_error: unsafe extern "C" fn(*mut c_char, usize),
    version: usize,
    /// Never unloaded, for the functions are its.
    _library: libloading::Library,
}

/// The library, or why there is none.
static FOUND: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();

/// The library's functions, or why there are none: what the environment's `CHANDLER_CUDNN` names, else
/// what the system finds by the name of release 9.
pub(super) fn functions() -> std::result::Result<&'static Functions, &'static str> {
    FOUND.get_or_init(find).as_ref().map_err(String::as_str)
}

fn find() -> std::result::Result<Functions, String> {
    let named = std::env::var("CHANDLER_CUDNN").ok();
    if named.as_deref() == Some("off") {
        return Err("switched off by CHANDLER_CUDNN".to_owned());
    }
    // SAFETY: whoever names a library has the program run what that does when it is loaded.
    let library = unsafe { libloading::Library::new(named.as_deref().unwrap_or("libcudnn.so.9")) };
    let library = library.map_err(|e| e.to_string())?;
    let functions = Functions::of(library).map_err(|e| e.to_string())?;
    if functions.version < OLDEST {
        return Err(format!("{} is older than {}", spelled(functions.version), spelled(OLDEST)));
    }
    Ok(functions)
}

/// `92801` as `9.28.1`.
fn spelled(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Functions {
    fn of(library: libloading::Library) -> std::result::Result<Self, libloading::Error> {
        /// # Safety
        /// The function of this name has the type that is asked for.
        unsafe fn get<F: Copy>(
            library: &libloading::Library,
            name: &CStr,
        ) -> std::result::Result<F, libloading::Error> {
            // SAFETY: the caller's promise.
            unsafe { library.get::<F>(name.to_bytes_with_nul()) }.map(|symbol| *symbol)
        }
        // SAFETY: the types are those of the header, which release 9 keeps.
        unsafe {
            let version: unsafe extern "C" fn() -> usize = get(&library, c"cudnnGetVersion")?;
            Ok(Self {
                create: get(&library, c"cudnnCreate")?,
                set_stream: get(&library, c"cudnnSetStream")?,
                create_descriptor: get(&library, c"cudnnBackendCreateDescriptor")?,
                destroy_descriptor: get(&library, c"cudnnBackendDestroyDescriptor")?,
                set_attribute: get(&library, c"cudnnBackendSetAttribute")?,
                get_attribute: get(&library, c"cudnnBackendGetAttribute")?,
                finalize: get(&library, c"cudnnBackendFinalize")?,
                execute: get(&library, c"cudnnBackendExecute")?,
                last_error: get(&library, c"cudnnGetLastErrorString")?,
                version: version(),
                _library: library,
            })
        }
    }

    /// The release, such as `9.28.1`.
    pub(super) fn version(&self) -> String {
        spelled(self.version)
    }

    /// An error that says what the library says of the call before, unless that went well.
    pub(super) fn check(&self, status: i32, what: &str) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        let mut text = [0u8; 1024];
        // SAFETY: the library writes at most so many bytes, the last of them zero.
        unsafe { (self.last_error)(text.as_mut_ptr().cast(), text.len()) };
        let said = CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy();
        bail!("cuDNN: {what}: status {status} {said}")
    }
}
