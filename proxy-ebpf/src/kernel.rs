//! Reading the kernel's own structs, where the daemon found their offsets in BTF.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_current_task, bpf_skc_to_tcp_sock},
    },
};

use crate::globals::{Offsets, reads_sockets, reads_tasks};

/// Reads a field of a kernel struct.
#[inline(always)]
pub fn field<T>(base: *const u8, offset: usize) -> Option<T> {
    if base.is_null() {
        return None;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset).cast::<T>()) }.ok()
}

/// The kernel's own struct of a TCP socket, null for any other. (Kernel 5.9.) The verifier allows no arithmetic on the
/// `bpf_sock` that contexts have.
#[inline(always)]
pub fn struct_of(sk: *mut bpf_sock) -> *const u8 {
    if sk.is_null() {
        return ptr::null();
    }
    // SAFETY: the helper takes any socket and returns null for one that is not TCP.
    unsafe { bpf_skc_to_tcp_sock(sk.cast()) }
        .cast_const()
        .cast()
}

/// The error that a TCP socket has, 0 for none; `None` where it cannot be told.
#[inline(always)]
pub fn error_of(sk: *mut bpf_sock) -> Option<u32> {
    if reads_sockets() {
        field::<u32>(struct_of(sk), Offsets::sk_err())
    } else {
        None
    }
}

/// Inode number and device of the executable of the current process: the same for all its threads, since they
/// share the `mm`. `None` for kernel threads, which have none.
#[inline(always)]
pub fn current_exe() -> Option<(u64, u64)> {
    if !reads_tasks() {
        return None;
    }
    // SAFETY: no arguments; always returns the running task.
    let task = unsafe { bpf_get_current_task() } as *const u8;
    let mm: *const u8 = field(task, Offsets::task_mm())?;
    let file: *const u8 = field(mm, Offsets::mm_exe_file())?;
    let inode: *const u8 = field(file, Offsets::file_inode())?;
    let number: u64 = field(inode, Offsets::inode_ino())?;
    let super_block: *const u8 = field(inode, Offsets::inode_sb())?;
    let device: u32 = field(super_block, Offsets::sb_dev())?;
    Some((number, u64::from(device)))
}
