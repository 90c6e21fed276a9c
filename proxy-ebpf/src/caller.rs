//! What the socket is on which an app calls `connect()`.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{SO_BINDTODEVICE, SOL_SOCKET, bpf_sock},
    helpers::generated::bpf_setsockopt,
    programs::SockAddrContext,
};
use proxy_common::{Family, ours};

use crate::{maps::OURS, relay::is_called_by_daemon, version::Version};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Whether the socket speaks TCP, or MPTCP, which falls back to TCP against our listeners.
#[inline(always)]
pub fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
}

/// Whether a daemon is calling, or has marked the socket as its own before.
#[inline(always)]
pub fn is_own(ctx: &SockAddrContext) -> bool {
    // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
    is_called_by_daemon()
        || unsafe { OURS.get_ptr_mut(ctx).as_ref() }.is_some_and(|word| *word == ours::OWN)
}

/// Whether the socket is bound to an address: an endpoint need not be reachable from that, as loopback, and the relay connects
/// from any.
#[inline(always)]
pub fn is_bound(version: &Version, ctx: &SockAddrContext) -> bool {
    let sk = sk_of(ctx);
    if sk.is_null() {
        return false;
    }
    // SAFETY: checked for null; the context keeps the socket alive. Volatile, word by word: the verifier knows these fields only
    // as single accesses.
    unsafe {
        if version.family == Family::V4 {
            return (&raw const (*sk).src_ip4).read_volatile() != 0;
        }
        let words = (&raw const (*sk).src_ip6).cast::<u32>();
        let any = words.read_volatile()
            | words.add(1).read_volatile()
            | words.add(2).read_volatile()
            | words.add(3).read_volatile();
        any != 0
    }
}

/// Unbinds the socket from its device (`SO_BINDTODEVICE`): the listener is reachable through loopback only. Whether that could be
/// done.
#[inline(always)]
pub fn free_of_device(ctx: &SockAddrContext) -> bool {
    let sk = sk_of(ctx);
    if sk.is_null() {
        return true;
    }
    // SAFETY: checked for null; the context keeps the socket alive.
    if unsafe { (*sk).bound_dev_if } == 0 {
        return true;
    }
    let mut none = [0u8; 4];
    // SAFETY: the value is on our stack and its length is right; the kernel copies it. (Kernel 5.8.)
    let result = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET as i32,
            SO_BINDTODEVICE as i32,
            none.as_mut_ptr().cast(),
            none.len() as i32,
        )
    };
    result == 0
}

/// The socket of the context.
#[inline(always)]
pub fn sk_of(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}
