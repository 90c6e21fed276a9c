//! The calls of `bpf(2)` that aya does not make.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

/// The ids of the programs attached to a cgroup itself, in the order they run in: `BPF_PROG_QUERY` (kernel 4.15).
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or when the kernel does not know the hook.
pub(super) fn query_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// More than the kernel lets anybody attach to one hook of a cgroup (`BPF_CGROUP_MAX_PROGS`).
    const MOST: u32 = 64;
    let mut ids = [0; MOST as usize];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd().unsigned_abs();
    attr.query.attach_type = attach_type;
    attr.query.prog_ids = ids.as_mut_ptr().addr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = MOST;
    // SAFETY: the kernel writes at most `prog_cnt` ids, for which there is room, and does not keep the pointer.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)? };
    // SAFETY: written by the kernel; any bits are an integer.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// Takes a program off its hook at once: `BPF_LINK_DETACH` (kernel 5.9). Closing the last descriptor or removing the last
/// pin does so too, but some time later.
///
/// # Errors
/// On older kernels.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd().unsigned_abs();
    // SAFETY: the call takes a descriptor and touches no memory of ours.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zeros are what the kernel wants in unused parts.
    unsafe { mem::zeroed() }
}

/// # Safety
/// Every pointer in the attribute must be what the command wants.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: the attribute is initialised and as long as we say; the rest is the caller's word.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
