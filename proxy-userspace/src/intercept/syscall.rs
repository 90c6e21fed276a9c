//! The calls of `bpf(2)` that aya does not make.

use std::{
    io,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use aya::Pod;
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

/// Takes an element out of a hash map: `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (for hash maps, kernel 5.14). `None`: it is not there.
///
/// # Errors
/// On older kernels.
///
/// # Safety
/// Keys and values of the map must be as long as `K` and `V`.
pub(super) unsafe fn take_element<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().unsigned_abs();
    attr.__bindgen_anon_2.key = ptr::from_ref(key).addr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr().addr() as u64;
    // SAFETY: the kernel reads one key and writes one value, for which there is room by the caller's word; it keeps neither
    // pointer.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
        // SAFETY: the kernel has written all of it.
        Ok(()) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
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
            ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
