//! The few system calls of a tracer, each with its arguments checked: the one file with `unsafe`.

#![expect(unsafe_code, reason = "the kernel is given addresses and numbers")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A process or a thread.
pub(crate) type Pid = libc::pid_t;

/// From `linux/audit.h`: what the filter sees of a 64-bit x86 program.
const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
/// Offsets in the kernel's `struct seccomp_data`.
const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_ARCH: u32 = 4;

/// Why a thread stopped, or that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At a call that the filter asks about.
    AtCall,
    /// After a call.
    AfterCall,
    /// For the tracer's own purposes: a new thread, a new program.
    Event,
    /// By a signal that it has not got yet.
    Signal(i32),
    /// It ended with this code.
    Exited(i32),
    /// It was ended by this signal.
    Killed(i32),
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Has the program that `command` starts trace-me itself, in a process group of its own, and stop at
/// the system calls with these numbers. The thread that spawns it is the tracer.
pub(crate) fn have_traced(command: &mut Command, numbers: &[i64]) {
    let filter = program(numbers);
    command.process_group(0);
    // SAFETY: between fork and exec the closure only makes system calls and reads `filter`, which
    // it owns; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the calls read their arguments alone; `program` and the filter that it points to live
    // until the last one has returned, and the kernel keeps a copy.
    unsafe {
        checked(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))?;
        checked(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        let mode = libc::SECCOMP_MODE_FILTER;
        checked(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program).into())?;
    }
    Ok(())
}

/// Asks the tracer about `numbers` and lets everything else pass.
fn program(numbers: &[i64]) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let equals = |k: u32, jt: usize, jf: usize| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let mut all = vec![
        load(OFFSET_OF_ARCH),
        equals(AUDIT_ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        load(OFFSET_OF_NUMBER),
    ];
    for (at, number) in numbers.iter().enumerate() {
        // To the last statement, over the comparisons that are left and the one that allows.
        all.push(equals(*number as u32, numbers.len() - at, 0));
    }
    all.push(answer(libc::SECCOMP_RET_ALLOW));
    all.push(answer(libc::SECCOMP_RET_TRACE));
    all
}

/// Has a stopped tracee stop at what the tracer wants to see, its future threads and children
/// included, and end with the tracer.
pub(crate) fn set_options(pid: Pid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: no memory of ours is touched.
    checked(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as libc::c_long) })?;
    Ok(())
}

/// Waits until a tracee of this thread (or `pid` alone) stops or ends; `None` if there is none.
pub(crate) fn wait(pid: Option<Pid>) -> io::Result<Option<(Pid, Stop)>> {
    let mut status = 0;
    // SAFETY: `status` is written to and nothing else.
    let found = unsafe {
        libc::waitpid(pid.unwrap_or(-1), &raw mut status, libc::__WALL | libc::__WNOTHREAD)
    };
    if found == -1 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    Ok(Some((found, stop_of(status))))
}

fn stop_of(status: i32) -> Stop {
    /// What `PTRACE_O_TRACESYSGOOD` marks stops at calls with.
    const SYSCALL: i32 = libc::SIGTRAP | 0x80;
    if libc::WIFEXITED(status) {
        return Stop::Exited(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Killed(libc::WTERMSIG(status));
    }
    match (libc::WSTOPSIG(status), status >> 16) {
        (libc::SIGTRAP, libc::PTRACE_EVENT_SECCOMP) => Stop::AtCall,
        (SYSCALL, _) => Stop::AfterCall,
        (_, 0) => Stop::Signal(libc::WSTOPSIG(status)),
        _ => Stop::Event,
    }
}

/// Lets a stopped thread go on with a signal (0: none), to the end of its call or further.
pub(crate) fn go_on(pid: Pid, signal: i32, to_end_of_call: bool) -> io::Result<()> {
    let request = if to_end_of_call { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
    // SAFETY: no memory of ours is touched.
    alive(checked(unsafe { libc::ptrace(request, pid, 0, libc::c_long::from(signal)) }))
}

/// Sends a signal to a process, or to a group by its negative number.
pub(crate) fn send(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory of ours is touched.
    alive(checked(unsafe { libc::kill(pid, signal) }.into()))
}

/// A thread that was killed meanwhile is no error.
fn alive(result: io::Result<libc::c_long>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// The registers of a stopped thread; `None` if it was killed meanwhile.
pub(crate) fn registers(pid: Pid) -> io::Result<Option<libc::user_regs_struct>> {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::uninit();
    // SAFETY: where the call succeeds, the kernel has filled all of `registers`.
    let result = unsafe {
        checked(libc::ptrace(libc::PTRACE_GETREGS, pid, 0, registers.as_mut_ptr()))
            .map(|_| registers.assume_init())
    };
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        other => other.map(Some),
    }
}

/// Changes the registers of a stopped thread.
pub(crate) fn set_registers(pid: Pid, registers: &libc::user_regs_struct) -> io::Result<()> {
    // SAFETY: the kernel reads `registers` and nothing else.
    alive(checked(unsafe {
        libc::ptrace(libc::PTRACE_SETREGS, pid, 0, std::ptr::from_ref(registers))
    }))
}
