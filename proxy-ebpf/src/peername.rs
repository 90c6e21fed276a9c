//! `getpeername()` tells the app the address it asked for.

use aya_ebpf::programs::SockAddrContext;
use proxy_common::role;

use crate::{caller::sk_of, connect::PROCEED, maps::socket_of, version::Version};

/// Answers one `getpeername()`, if the peer still is the listener or endpoint that the socket was sent to.
#[inline(always)]
pub fn getpeername(version: &Version, ctx: &SockAddrContext) -> i32 {
    if let Some(socket) = socket_of(sk_of(ctx)) {
        let (addr, port) = version.addr(ctx);
        let is_ours = match socket.role {
            role::INTERCEPTED => addr.is_loopback(),
            role::REWRITTEN => addr == socket.peer,
            _ => false,
        };
        if is_ours && port == socket.listener_port {
            let record = &socket.record;
            version.set_addr(ctx, record.orig_addr, record.orig_port);
        }
    }
    PROCEED
}
