//! `getpeername()` tells the app the address it asked for.

use aya_ebpf::programs::SockAddrContext;
use proxy_common::{BePort, Socket, role};

use crate::{
    connect::{PROCEED, V4, V6, Version, sk_of},
    maps::socket_of,
};

/// On an IPv4 socket.
#[inline(always)]
pub fn getpeername4(ctx: &SockAddrContext) -> i32 {
    if let Some(socket) = still_redirected(&V4, ctx) {
        let [_, _, _, addr] = socket.record.orig_addr.words();
        // SAFETY: the context is valid while the program runs; the fields are writable in this hook.
        unsafe {
            (*ctx.sock_addr).user_ip4 = addr;
            (*ctx.sock_addr).user_port = u32::from(socket.record.orig_port.0);
        }
    }
    PROCEED
}

/// On an IPv6 socket.
#[inline(always)]
pub fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if let Some(socket) = still_redirected(&V6, ctx) {
        let words = socket.record.orig_addr.words();
        // SAFETY: the context is valid while the program runs; the fields are writable in this hook.
        unsafe {
            (*ctx.sock_addr).user_ip6 = words;
            (*ctx.sock_addr).user_port = u32::from(socket.record.orig_port.0);
        }
    }
    PROCEED
}

/// What hangs on the socket, if its peer still is the listener it was sent to.
#[inline(always)]
fn still_redirected(version: &Version, ctx: &SockAddrContext) -> Option<&'static mut Socket> {
    let socket = socket_of(sk_of(ctx))?;
    let (addr, port): (_, BePort) = version.dest(ctx);
    (socket.role == role::INTERCEPTED && port == socket.listener_port && addr.is_loopback())
        .then_some(socket)
}
