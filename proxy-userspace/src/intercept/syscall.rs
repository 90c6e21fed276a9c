//! The calls of `bpf(2)` that aya does not make, and what else it takes to share objects with another process.

use std::{
    ffi::CString,
    io,
    mem::{self, MaybeUninit},
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
use nix::sys::signal::Signal;

/// The ids of the programs attached to a cgroup itself, or to a network namespace, in the order they run in: `BPF_PROG_QUERY` (kernel 4.15).
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or when the kernel does not know the hook.
pub(super) fn query_programs(target: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    query(target.as_raw_fd().unsigned_abs(), attach_type, 0)
}

/// Those that run for processes of a cgroup, wherever they are attached, in the order they run in (`BPF_F_QUERY_EFFECTIVE`).
///
/// # Errors
/// As [`query_programs`].
pub(super) fn query_effective(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let cgroup = cgroup.as_raw_fd().unsigned_abs();
    query(cgroup, attach_type, BPF_F_QUERY_EFFECTIVE)
}

/// Those that links hold on the ingress of an interface (kernel 6.6), in the order they run in.
///
/// # Errors
/// As [`query_programs`], and when there is no such interface.
pub(super) fn on_ingress(interface: u32) -> io::Result<Vec<u32>> {
    query(interface, bpf_attach_type::BPF_TCX_INGRESS as u32, 0)
}

/// Of a descriptor or of an interface's number, which have the same place.
fn query(target: u32, attach_type: u32, flags: u32) -> io::Result<Vec<u32>> {
    /// More than the kernel lets anybody attach to one hook of a cgroup (`BPF_CGROUP_MAX_PROGS`); all that are in force
    /// below one are more only where cgroups above have as many.
    const MOST: u32 = 256;
    let mut ids = [0; MOST as usize];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_fd = target;
    attr.query.attach_type = attach_type;
    attr.query.query_flags = flags;
    attr.query.prog_ids = ids.as_mut_ptr().addr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = MOST;
    // SAFETY: the kernel writes at most `prog_cnt` ids, for which there is room, and does not keep the pointer.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)? };
    // SAFETY: written by the kernel; any bits are an integer.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// Of `linux/bpf.h`.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// Whether the kernel knows programs on the ingress of interfaces that are attached by links (kernel 6.6): it tells those of
/// loopback.
pub(super) fn has_tcx() -> bool {
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_ifindex = LOOPBACK;
    attr.query.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    // SAFETY: without room for ids the kernel writes none.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }.is_ok()
}

/// Its number, in every network namespace (`LOOPBACK_IFINDEX` in `include/linux/netdevice.h`).
const LOOPBACK: u32 = 1;

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

/// Attaches a program to what a descriptor stands for: `BPF_LINK_CREATE` (kernel 5.7). aya makes such links, too, but does not
/// give those of `sk_lookup` away, to be pinned, and knows not all `flags`.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().unsigned_abs();
    attr.link_create.__bindgen_anon_2.target_fd = target.as_raw_fd().unsigned_abs();
    attr.link_create.attach_type = attach_type;
    attr.link_create.flags = flags;
    // SAFETY: the call takes two descriptors and touches no memory of ours.
    let link = unsafe { bpf_result(bpf_cmd::BPF_LINK_CREATE, &mut attr)? };
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Attaches a program to a cgroup, where it stays whatever becomes of this process: `BPF_PROG_ATTACH` beside others (kernel 4.15).
///
/// # Errors
/// When the kernel refuses.
pub(super) fn attach_program(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    let mut attr = attachment(program, cgroup, attach_type);
    attr.__bindgen_anon_5.attach_flags = aya_obj::generated::BPF_F_ALLOW_MULTI;
    // SAFETY: the call takes descriptors and numbers and touches no memory of ours.
    unsafe { bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attr) }
}

/// Takes a program off a cgroup that was attached so: `BPF_PROG_DETACH`.
///
/// # Errors
/// When it is not there, or there by a link.
pub(super) fn detach_program(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    let mut attr = attachment(program, cgroup, attach_type);
    // SAFETY: as in `attach_program`.
    unsafe { bpf(bpf_cmd::BPF_PROG_DETACH, &mut attr) }
}

fn attachment(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> bpf_attr {
    let mut attr = zeroed();
    attr.__bindgen_anon_5.__bindgen_anon_1.target_fd = cgroup.as_raw_fd().unsigned_abs();
    attr.__bindgen_anon_5.attach_bpf_fd = program.as_raw_fd().unsigned_abs();
    attr.__bindgen_anon_5.attach_type = attach_type;
    attr
}

/// Attaches a program to the ingress of an interface: `BPF_LINK_CREATE` of tcx (kernel 6.6).
///
/// # Errors
/// When the kernel refuses.
pub(super) fn create_interface_link(
    program: BorrowedFd<'_>,
    interface: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().unsigned_abs();
    attr.link_create.__bindgen_anon_2.target_ifindex = interface;
    attr.link_create.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    // SAFETY: the call takes a descriptor and numbers and touches no memory of ours.
    let link = unsafe { bpf_result(bpf_cmd::BPF_LINK_CREATE, &mut attr)? };
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Gives an object a name in a bpffs, which keeps it: `BPF_OBJ_PIN` (kernel 4.4).
///
/// # Errors
/// When the kernel refuses, or the name is none.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd().unsigned_abs();
    attr.__bindgen_anon_4.pathname = path.as_ptr().addr() as u64;
    // SAFETY: the kernel reads a string that ends with 0 and lives until the call returns.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }
}

/// Runs a raw tracepoint program once, on its own, and returns what it returns: `BPF_PROG_TEST_RUN` (kernel 5.10).
///
/// # Errors
/// When the program takes more arguments.
pub(super) fn run_program(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<u32> {
    let mut attr = zeroed();
    attr.test.prog_fd = program.as_raw_fd().unsigned_abs();
    attr.test.ctx_in = arguments.as_ptr().addr() as u64;
    attr.test.ctx_size_in = u32::try_from(size_of_val(arguments)).unwrap_or(u32::MAX);
    // SAFETY: the kernel reads `ctx_size_in` bytes of the arguments and does not keep the pointer.
    unsafe { bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)? };
    // SAFETY: written by the kernel; any bits are an integer.
    Ok(unsafe { attr.test.retval })
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

/// A bpffs that is mounted nowhere and gone when this is dropped: aya loads shared maps from pins only, and nobody else is to see
/// these. (`fsopen` and `fsmount`, kernel 5.2.)
#[derive(Debug)]
pub(super) struct Shelf {
    root: OwnedFd,
}

impl Shelf {
    /// # Errors
    /// Without `CAP_SYS_ADMIN`.
    pub(super) fn new() -> io::Result<Self> {
        /// `linux/mount.h`.
        const FSOPEN_CLOEXEC: libc::c_uint = 1;
        const FSMOUNT_CLOEXEC: libc::c_uint = 1;
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        let nothing = ptr::null::<libc::c_void>();
        // SAFETY: the kernel reads a string that ends with 0; the other calls take descriptors and numbers only.
        let root = unsafe {
            let kind = c"bpf".as_ptr();
            let context = owned(libc::syscall(libc::SYS_fsopen, kind, FSOPEN_CLOEXEC))?;
            let number = context.as_raw_fd();
            let create = FSCONFIG_CMD_CREATE;
            result(libc::syscall(
                libc::SYS_fsconfig,
                number,
                create,
                nothing,
                nothing,
                0,
            ))?;
            owned(libc::syscall(libc::SYS_fsmount, number, FSMOUNT_CLOEXEC, 0))?
        };
        Ok(Self { root })
    }

    /// Its directory, for this process.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.root.as_fd().as_raw_fd()).into()
    }
}

/// A descriptor that stands for a process: `pidfd_open` (kernel 5.3).
///
/// # Errors
/// When there is no such process.
pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers and touches no memory of ours; what it returns nobody else knows of.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// Sends a signal to it: `pidfd_send_signal` (kernel 5.1).
///
/// # Errors
/// When it has ended, or is not ours to signal.
pub(super) fn signal_process(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let nothing = ptr::null::<libc::siginfo_t>();
    let (number, process) = (signal as libc::c_int, process.as_raw_fd());
    // SAFETY: without details of the signal the call touches no memory of ours.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, number, nothing, 0) };
    result(sent).map(drop)
}

/// # Safety
/// It must be the result of a call that makes a descriptor.
unsafe fn owned(made: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: the caller's word.
    result(made).map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zeros are what the kernel wants in unused parts.
    unsafe { mem::zeroed() }
}

/// # Safety
/// Every pointer in the attribute must be what the command wants.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    // SAFETY: the caller's word.
    unsafe { bpf_result(command, attr) }.map(drop)
}

/// As [`bpf`], for commands whose result says more than that they succeeded.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_result(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attribute is initialised and as long as we say; the rest is the caller's word.
    let called = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    result(called)
}

/// What a system call returned.
fn result(called: libc::c_long) -> io::Result<RawFd> {
    if called < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(called).map_err(io::Error::other)
}
