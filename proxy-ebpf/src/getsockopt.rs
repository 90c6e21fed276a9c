//! `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` on an app's own socket, as if connection tracking had answered.

use aya_ebpf::programs::SockoptContext;
use proxy_common::{Family, Record, role};

use crate::maps::socket_of;

/// Verdict of a `getsockopt` hook: return what is in the context.
const PROCEED: i32 = 1;

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` (`linux/netfilter_ipv4.h`) and `IP6T_SO_ORIGINAL_DST` (`linux/netfilter_ipv6/ip6_tables.h`).
const ORIGINAL_DST: i32 = 80;

/// The kernel gives us at most a page of the option; a longer one must be left alone by setting the length to 0,
/// or the call fails with EFAULT (`__cgroup_bpf_run_filter_getsockopt()` in kernel/bpf/cgroup.c).
const PAGE_SIZE: i32 = 4096;

/// `struct sockaddr_in`.
#[repr(C)]
struct SockAddrV4 {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`, in words, since the option's buffer is only known to be word-aligned.
#[repr(C)]
struct SockAddrV6 {
    family: u16,
    port: u16,
    flow: u32,
    addr: [u32; 4],
    scope: u32,
}

/// Answers one `getsockopt()`.
#[inline(always)]
pub fn getsockopt(ctx: &SockoptContext) -> i32 {
    let raw = ctx.sockopt;
    // SAFETY: the context is valid while the program runs.
    let (level, name, length) = unsafe { ((*raw).level, (*raw).optname, (*raw).optlen) };
    if name == ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6) {
        answer(ctx, level);
    } else if length > PAGE_SIZE {
        // SAFETY: as above; `optlen` is writable in this hook.
        unsafe { (*raw).optlen = 0 };
    }
    PROCEED
}

#[inline(always)]
fn answer(ctx: &SockoptContext, level: i32) -> Option<()> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.sockopt).__bindgen_anon_1.sk };
    let socket = socket_of(sk)
        .filter(|socket| socket.role == role::INTERCEPTED || socket.role == role::REWRITTEN)?;
    let record: &Record = &socket.record;
    let words = record.orig_addr.words();
    let is_v4 = record.orig_addr.is_v4();
    if level == SOL_IP && is_v4 {
        let [_, _, _, addr] = words;
        write(
            ctx,
            SockAddrV4 {
                family: Family::V4,
                port: record.orig_port.0,
                addr,
                zero: [0; 2],
            },
        )
    } else if level == SOL_IPV6 && !is_v4 {
        write(
            ctx,
            SockAddrV6 {
                family: Family::V6,
                port: record.orig_port.0,
                flow: 0,
                addr: words,
                scope: 0,
            },
        )
    } else {
        None
    }
}

/// Replaces the kernel's answer (ENOENT without connection tracking), if the app's buffer has room.
#[inline(always)]
fn write<T>(ctx: &SockoptContext, value: T) -> Option<()> {
    let raw = ctx.sockopt;
    // SAFETY: the context is valid while the program runs, and the bounds check below is the one the verifier
    // wants before a write to the buffer.
    unsafe {
        let start = (*raw).__bindgen_anon_2.optval.cast::<T>();
        let end = (*raw).__bindgen_anon_3.optval_end.cast::<T>();
        if start.wrapping_add(1) > end {
            return None;
        }
        start.write(value);
        // Volatile: merged into one 8-byte store the verifier refuses them.
        (&raw mut (*raw).optlen).write_volatile(size_of::<T>() as i32);
        (&raw mut (*raw).retval).write_volatile(0);
    }
    Some(())
}
