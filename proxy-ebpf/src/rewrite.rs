//! `path = "rewrite"`: the app's own socket goes to an endpoint of the group, and nobody is between them.
//!
//! All that is left to do is to answer the app where it wanted to go, and to tell the daemon which endpoints cannot be reached.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::bpf_get_prandom_u32,
    programs::{SockAddrContext, SockOpsContext},
};
use proxy_common::{Addr, BePort, draw, ours, relay, role};

use crate::{
    caller::{is_bound, sk_of},
    kernel::error_of,
    maps::{MADE, OURS, RELAY, SOCKETS, UNMADE_EVENTS, mptcp_socket_of, socket_of},
    policy::KernelTables,
    version::Version,
};

/// Points the call at an endpoint; `None` where there is none for this socket, which is unchanged then.
#[inline(always)]
pub fn to_endpoint(
    version: &Version,
    ctx: &SockAddrContext,
    group: u32,
    addr: Addr,
    port: BePort,
) -> Option<()> {
    if is_bound(version, ctx) {
        return None;
    }
    // An IPv6 socket with an IPv4-mapped destination speaks IPv4; what it is bound to is of that family, too.
    let seat = draw(&KernelTables, group, addr.is_v4(), random())?;
    // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
    let socket = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }?;
    socket.record.orig_addr = addr;
    socket.record.orig_port = port;
    socket.peer = seat.addr;
    socket.listener_port = seat.port;
    socket.endpoint = seat.endpoint;
    socket.passed = 1;
    socket.role = role::REWRITTEN;
    if let Some(above) = mptcp_socket_of(sk_of(ctx)) {
        *above = *socket;
    }
    version.set_addr(ctx, seat.addr, seat.port);
    tell_successor(ctx, &seat.addr, seat.port);
    Some(())
}

/// While both are attached the hook of whoever takes our place runs next, and could not tell an endpoint from where the app wanted
/// to go. It has no part in our [`SOCKETS`], but in [`OURS`].
#[inline(always)]
pub fn tell_successor(ctx: &SockAddrContext, addr: &Addr, port: BePort) {
    let has_one = RELAY
        .get(relay::SUCCESSOR)
        .is_some_and(|relay| relay.netns_cookie != 0);
    if has_one {
        // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
        if let Some(word) = unsafe { OURS.get_or_insert_ptr_mut(ctx, None).as_mut() } {
            *word = ours::sent_to(addr, port);
        }
    }
}

/// Whether the daemon whose place we take has sent the connection to an endpoint.
#[inline(always)]
pub fn was_sent(ctx: &SockAddrContext, addr: &Addr, port: BePort) -> bool {
    // SAFETY: as in `tell_successor`.
    unsafe { OURS.get_ptr_mut(ctx).as_ref() }.is_some_and(|word| *word == ours::sent_to(addr, port))
}

#[inline(always)]
fn random() -> u64 {
    // SAFETY: no arguments, plain numbers out.
    unsafe { u64::from(bpf_get_prandom_u32()) << 32 | u64::from(bpf_get_prandom_u32()) }
}

/// Whether this call was sent to an endpoint by [`to_endpoint`], a moment ago: it says so once.
#[inline(always)]
pub fn was_chosen(ctx: &SockAddrContext, addr: &Addr, port: BePort) -> bool {
    // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
    let Some(socket) = (unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() }) else {
        return false;
    };
    let passed = socket.passed != 0;
    socket.passed = 0;
    passed && socket.role == role::REWRITTEN && socket.peer == *addr && socket.listener_port == port
}

/// The connection was made.
#[inline(always)]
pub fn made(sk: *mut bpf_sock) {
    if let Some(socket) = socket_of(sk)
        && let Some(made) = MADE.get_ptr_mut(socket.endpoint)
    {
        // SAFETY: the kernel returned a pointer to this CPU's value, which stays until this program ends, also if it is removed.
        // One that interrupts us between read and write costs a count, nothing else.
        unsafe { *made += 1 };
    }
}

/// The connection could not be made, or was given up.
///
/// The socket's error tells one from the other: it is set before the state changes (`tcp_reset()`, `tcp_v4_err()`,
/// `tcp_write_err()`), and an app that closes its socket leaves none. Without BTF, or where an app has its own limit, it counts
/// whether the SYN had to be repeated, which takes a second.
#[inline(always)]
pub fn unmade(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = socket_of(sk) else {
        return;
    };
    let error = error_of(sk).unwrap_or(0);
    // SAFETY: the context is valid while the program runs.
    let repeated = unsafe { (&raw const (*ctx.ops).total_retrans).read_volatile() };
    if error != 0 || repeated != 0 {
        let event = u64::from(error) << 32 | u64::from(socket.endpoint);
        // Where there is no room many such events wait already.
        let _ = UNMADE_EVENTS.output(event, 0);
    }
}
