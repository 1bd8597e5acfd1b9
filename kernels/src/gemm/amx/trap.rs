//! Runs the compiled tile instructions on CPUs that lack them: each raises SIGILL, whose handler
//! decodes its bytes, does to a [`Model`] what the instruction does to tiles, and goes on behind
//! it. So the encodings, the addresses and the loop of `Tmm::block` are tested as they stand in the
//! binary. Encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
#![expect(unsafe_code, reason = "a signal handler that does what the CPU would do")]

use std::cell::RefCell;
use std::sync::Once;

use super::Line;
use super::block::Rows;
use super::machine::{Machine, Tmm, cpu_has_amx};
use super::model::Model;

/// `Tmm`, on a CPU that has no tiles.
pub(crate) struct Trapped(Tmm);

impl Trapped {
    /// Whether tile instructions trap here.
    pub(crate) fn is_of_use() -> bool {
        !cpu_has_amx()
    }
}

impl Machine for Trapped {
    fn configured<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        static INSTALLED: Once = Once::new();
        assert!(Self::is_of_use(), "tiles that do not trap");
        INSTALLED.call_once(install);
        // SAFETY: where the CPU has no tiles, the handler does all that the instructions do.
        work(&mut Trapped(unsafe { Tmm::set_up() }))
    }

    fn block(&mut self, left: Rows, right: &[Line], c: &mut [f32], pitch: usize, add: bool) {
        self.0.block(left, right, c, pitch, add);
    }
}

thread_local! {
    /// The tiles of this thread; none where they are not set up.
    static TILES: RefCell<Option<Model>> = const { RefCell::new(None) };
}

fn install() {
    // SAFETY: the handler has the signature that SA_SIGINFO asks for; a zeroed action has an empty
    // mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_illegal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Only tile instructions come here, and those are where the code expects its tiles to change, so
/// nothing is interrupted in the middle of anything.
extern "C" fn on_illegal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid context to a handler that was installed with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: a tile instruction is at most 11 bytes, and functions of ours are never that close
    // to the end of the code.
    let bytes: [u8; 11] = unsafe { at.cast::<[u8; 11]>().read() };
    let done = TILES.with_borrow_mut(|tiles| execute(&bytes, registers, tiles));
    let Some(length) = done else { std::process::abort() };
    registers[libc::REG_RIP as usize] += length as i64;
}

/// Does what the instruction does; its length, or none if it is not one of ours or finds the tiles
/// not set up.
fn execute(bytes: &[u8; 11], registers: &[i64; 23], tiles: &mut Option<Model>) -> Option<usize> {
    // VEX of three bytes: C4, R X B (inverted) and the map 0F38, W vvvv (inverted) L and prefix.
    let [0xc4, rxb, wvlp, opcode, modrm, ..] = *bytes else { return None };
    if rxb & 0x1f != 2 || wvlp & 0x84 != 0 {
        return None;
    }
    let (prefix, register) = (wvlp & 3, usize::from(modrm >> 3 & 7));
    if modrm >> 6 == 3 {
        let other = usize::from(modrm & 7);
        match (opcode, prefix) {
            (0x49, 0) if modrm == 0xc0 => *tiles = None,
            (0x49, 3) => tiles.as_mut()?.tiles[register] = Default::default(),
            (0x5c, 2) => tiles.as_mut()?.dot(register, other, usize::from(!wvlp >> 3 & 15)),
            _ => return None,
        }
        return Some(5);
    }
    let (address, stride, length) = memory(bytes, rxb, modrm, registers)?;
    match (opcode, prefix) {
        (0x49, 0) if register == 0 => *tiles = Some(configured(address)?),
        (0x4b, 3) => {
            for (row, lanes) in tiles.as_mut()?.tiles[register].iter_mut().enumerate() {
                // SAFETY: as sound as the instruction: 16 rows of 64 bytes, `stride` apart.
                *lanes = unsafe { (address as *const [u32; 16]).byte_add(row * stride?).read() };
            }
        }
        (0x4b, 2) => {
            for (row, lanes) in tiles.as_ref()?.tiles[register].iter().enumerate() {
                // SAFETY: as above.
                unsafe { (address as *mut [u32; 16]).byte_add(row * stride?).write(*lanes) };
            }
        }
        _ => return None,
    }
    Some(length)
}

/// Address, index register's share of it (the stride of a tile, if there is an index) and length of
/// an instruction with a memory operand.
fn memory(
    bytes: &[u8; 11],
    rxb: u8,
    modrm: u8,
    registers: &[i64; 23],
) -> Option<(usize, Option<usize>, usize)> {
    use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
    let value = |low: u8, extended: bool| {
        let low8 = [REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI];
        let at = if extended { libc::REG_R8 + i32::from(low) } else { low8[usize::from(low)] };
        registers[at as usize] as usize
    };
    let (extend_index, extend_base) = (rxb & 0x40 == 0, rxb & 0x20 == 0);
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let (base, stride, mut length) = if rm == 4 {
        let (scale, index, base) = (bytes[5] >> 6, bytes[5] >> 3 & 7, bytes[5] & 7);
        let indexed = index != 4 || extend_index;
        let stride = indexed.then(|| value(index, extend_index) << scale);
        (base, stride, 6)
    } else {
        (rm, None, 5)
    };
    if mode == 0 && base == 5 {
        return None; // Relative to RIP, or no base.
    }
    let displacement = match mode {
        0 => 0,
        1 => isize::from(bytes[length] as i8),
        _ => i32::from_le_bytes(*bytes[length..].first_chunk()?) as isize,
    };
    length += [0, 1, 4][usize::from(mode)];
    let address = value(base, extend_base).wrapping_add_signed(displacement);
    Some((address, stride, length))
}

/// Tiles as the 64 bytes at `address` set them up, provided that is how `Tmm` wants them.
fn configured(address: usize) -> Option<Model> {
    // SAFETY: as sound as the instruction.
    let bytes = unsafe { (address as *const [u8; 64]).read() };
    let row_bytes = |tile: usize| u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]);
    let all = (0..8).all(|tile| row_bytes(tile) == 64 && bytes[48 + tile] == 16);
    let rest = bytes[1..16].iter().chain(&bytes[32..48]).chain(&bytes[56..64]);
    (bytes[0] == 1 && all && rest.copied().all(|byte| byte == 0)).then(Model::new)
}
