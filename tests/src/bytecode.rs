//! Programs of a few instructions, written down as such, and the system call that takes them.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};

const PROG_LOAD: libc::c_int = 5;

/// One instruction (`struct bpf_insn`): the source register is in the upper half of `registers`.
pub fn instruction(code: u8, registers: u8, offset: u16, value: u32) -> u64 {
    u64::from(code) | u64::from(registers) << 8 | u64::from(offset) << 16 | u64::from(value) << 32
}

/// The beginning of what the kernel calls `union bpf_attr`, for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

/// Loads a program of a kind, for a hook where kinds have several.
///
/// # Errors
/// What the kernel says.
pub fn load(kind: u32, attach_kind: u32, code: &[u64]) -> io::Result<OwnedFd> {
    // Before Linux 5.11 programs and maps count as locked memory. Where the limit may not be raised the kernel may not ask for it.
    _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let mut load = Load {
        kind,
        count: u32::try_from(code.len()).map_err(io::Error::other)?,
        instructions: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_kind,
        ..Load::default()
    };
    // SAFETY: the instructions are as many as is said, and are only read.
    let made = unsafe { call(PROG_LOAD, &mut load) }?;
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { descriptor(made) })
}

/// A command of `bpf(2)`.
///
/// # Safety
/// What the attributes point at is as long as they say, and may be written where the command does that. They have no padding.
///
/// # Errors
/// What the kernel says.
pub unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes as many bytes as we say, which are there; for the rest the caller answers.
    let called = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    Ok(Errno::result(called)?)
}

/// What a command that makes something has returned.
///
/// # Safety
/// The command must have just returned it.
pub unsafe fn descriptor(made: i64) -> OwnedFd {
    let made = RawFd::try_from(made).expect("a descriptor");
    // SAFETY: the caller's word.
    unsafe { OwnedFd::from_raw_fd(made) }
}
