//! The tiles of the CPU, and whether there are any.
#![expect(
    unsafe_code,
    reason = "tile instructions, by inline assembly; each block says why it is sound"
)]

use std::arch::asm;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::LazyLock;

use half::bf16;

use super::block::Rows;
use super::sequence::{begin_sums, begin_zero, last, step, text, text_of};
use super::{DEPTH, Line, SIDE};
use crate::gemm::output::{Output, Tiles};

/// What computes blocks of 32 × 32 sums from panels: the CPU's tiles or, in tests, a model of them.
pub(crate) trait Machine: Sized {
    /// Calls `work` with the tiles set up for 16 rows of 64 bytes each.
    fn configured<R>(work: impl FnOnce(&mut Self) -> R) -> R;

    /// `c[i · pitch + j] (+)= Σ left row i · right column j`, for 32 rows and columns and as many
    /// steps as `right` has (at least one).
    fn block(&mut self, left: Rows, right: &[Line], c: &mut [f32], pitch: usize, add: bool);

    /// Writes a block of sums to its place.
    fn write<O: Output>(out: &Tiles<O>, place: [usize; 2], c: &[f32], pitch: usize, add: bool) {
        out.write(place, [SIDE, SIDE], c, pitch, add);
    }

    /// Makes what was written visible to other threads.
    fn finish() {}
}

/// Panics where a block would read or write outside of its slices; returns the steps.
pub(super) fn check_block(left: &Rows, right: &[Line], c: &[f32], pitch: usize) -> usize {
    let steps = right.len() / SIDE;
    assert!(steps > 0 && right.len() == steps * SIDE, "whole steps");
    let last = (SIDE - 1) * left.row + (steps - 1) * left.step;
    assert!(left.data.len() >= last + DEPTH, "{SIDE} rows of {steps} steps");
    assert!(pitch >= SIDE && c.len() >= (SIDE - 1) * pitch + SIDE, "sums of {SIDE} x {SIDE}");
    steps
}

/// The CPU's tile registers, set up on this thread. Exists only where [`available`] is true.
pub(crate) struct Tmm(());

/// The operand of `ldtilecfg`: palette 1, all eight tiles 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.row_bytes[tile] = 64;
        config.rows[tile] = 16;
        tile += 1;
    }
    config
};

impl Tmm {
    /// Sets up the tiles of this thread, until the value is dropped.
    ///
    /// # Safety
    /// This process may use AMX.
    pub(super) unsafe fn set_up() -> Tmm {
        // SAFETY: the caller vouches for the instruction; its operand is a valid configuration of
        // 64 bytes. Compiled code never touches tiles of its own accord.
        unsafe {
            asm!("ldtilecfg [{config}]", config = in(reg) &raw const CONFIG, options(nostack));
        }
        SET_UP.set(true);
        Tmm(())
    }

    /// The tiles that are set up on this thread already. Panics where none are.
    pub(super) fn with_set_up<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        assert!(SET_UP.get(), "tiles that nobody has set up");
        work(&mut ManuallyDrop::new(Tmm(())))
    }
}

thread_local! {
    /// Whether a [`Tmm`] lives on this thread.
    static SET_UP: Cell<bool> = const { Cell::new(false) };
}

impl Machine for Tmm {
    fn configured<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        assert!(available(), "tiles on a CPU without AMX");
        // SAFETY: the CPU has AMX and the system lets this process use it.
        work(&mut unsafe { Tmm::set_up() })
    }

    fn block(&mut self, left: Rows, right: &[Line], c: &mut [f32], pitch: usize, add: bool) {
        let steps = check_block(&left, right, c, pitch);
        // One block from start to end, so that no tile has to keep its value between two.
        macro_rules! block {
            ($begin:ident) => {
                // SAFETY: tiles are set up while a `Tmm` lives. `check_block` saw that both sides
                // hold `steps` steps, of which each step loads its own 2 KiB and, in all but the
                // last, that of the next one, and that `c` holds all rows that are stored.
                unsafe {
                    asm!(
                        $begin!(text!()),
                        "dec {steps}",
                        "jz 3f",
                        "2:",
                        step!(text!()),
                        "dec {steps}",
                        "jnz 2b",
                        "3:",
                        last!(text!()),
                        left = inout(reg) left.data.as_ptr() => _,
                        low = inout(reg) left.data.as_ptr().add(SIDE / 2 * left.row) => _,
                        row = in(reg) left.row * size_of::<bf16>(),
                        step = in(reg) left.step * size_of::<bf16>(),
                        right = inout(reg) right.as_ptr() => _,
                        steps = inout(reg) steps => _,
                        upper = in(reg) c.as_mut_ptr(),
                        lower = in(reg) c.as_mut_ptr().add(SIDE / 2 * pitch),
                        two = in(reg) 2 * size_of::<Line>(),
                        pitch = in(reg) pitch * size_of::<f32>(),
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            };
        }
        if add {
            block!(begin_sums);
        } else {
            block!(begin_zero);
        }
    }

    fn finish() {
        // SAFETY: every CPU with tiles has the instruction.
        unsafe { std::arch::x86_64::_mm_sfence() }
    }

    fn write<O: Output>(out: &Tiles<O>, place: [usize; 2], c: &[f32], pitch: usize, add: bool) {
        if has_bf16() {
            // SAFETY: the CPU has the instructions.
            unsafe { out.write_square(place, c, pitch, add) }
        } else {
            out.write(place, [SIDE, SIDE], c, pitch, add);
        }
    }
}

impl Drop for Tmm {
    fn drop(&mut self) {
        SET_UP.set(false);
        // SAFETY: a `Tmm` exists only where the CPU has AMX. Tiles that are not in use need not be
        // saved when the thread is switched.
        unsafe { asm!("tilerelease", options(nomem, nostack)) }
    }
}

/// Whether the CPU has AMX for bf16, and AVX-512 beside it, and the operating system lets this
/// process use them. Asks for the permission once.
pub(crate) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl");
        avx512 && cpu_has_amx() && system_keeps_tiles() && permitted()
    });
    *AVAILABLE
}

/// Whether the CPU rounds to bf16 by an instruction, as all do that have tiles.
fn has_bf16() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bf16")
}

/// CPUID leaf 7: AMX-BF16 is bit 22 of EDX, AMX-TILE bit 24.
pub(super) fn cpu_has_amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let tile_and_bf16 = 1 << 24 | 1 << 22;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & tile_and_bf16 == tile_and_bf16
}

/// Bits 17 and 18 of XCR0: the system saves the tile configuration and the tiles.
fn system_keeps_tiles() -> bool {
    // CPUID leaf 1, bit 27 of ECX: XGETBV may be used.
    if std::arch::x86_64::__cpuid(1).ecx & 1 << 27 == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: the CPU says that the instruction is there; it reads a register that always exists.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack));
    }
    low & (1 << 17 | 1 << 18) == 1 << 17 | 1 << 18
}

/// Linux wants to be asked before a process's first use of tiles, since each thread's saved state
/// grows by 8 KiB with it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that takes two numbers and changes no memory of ours; the registers
    // that it overwrites are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// Other systems are not known to hand out tiles without being asked in their own way.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
