//! Events of TCP sockets: the record is published before the SYN leaves and withdrawn when the socket ends.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_FIN_WAIT2, BPF_TCP_SYN_SENT, bpf_sock,
    },
    programs::SockOpsContext,
};
use proxy_common::{
    Addr, BePort, Counter, Dimensions, Family, OwnKey, RecordKey, Socket, role, standing,
};

use crate::{
    full::full_now,
    maps::{OWN, OWN_FULL, POLICY, RECORDS, RECORDS_FULL, count, is_ours, socket_of},
    rewrite, shortcut,
};

/// Verdict of a `sockops` program; the kernel ignores it for these events.
const DONE: u32 = 1;

/// Handles one event.
#[inline(always)]
pub fn sockops(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB if has_role(ctx, role::REWRITTEN) => see_states(ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB if has_role(ctx, role::REWRITTEN) => {
            rewrite::made(sk_of(ctx));
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => admit(ctx),
        BPF_SOCK_OPS_STATE_CB
            if ctx.arg(0) == BPF_TCP_SYN_SENT
                && ctx.arg(1) == BPF_TCP_CLOSE
                && has_role(ctx, role::REWRITTEN) =>
        {
            rewrite::unmade(ctx, sk_of(ctx));
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE && is_abandoned(ctx.arg(0)) => {
            withdraw(ctx);
        }
        _ => {}
    }
    DONE
}

/// Handles one event of a socket of the daemon's cgroup: the daemon's own connections are registered while they are open.
///
/// A program of its own, since the daemon need not be below the cgroup that it intercepts.
#[inline(always)]
pub fn own(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => register(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE && is_ours(sk_of(ctx)) => {
            let _ = OWN.remove(own_key_of(ctx));
        }
        _ => {}
    }
    DONE
}

/// The source port is chosen and the SYN not yet built (`tcp_connect()` in `net/ipv4/tcp_output.c`): whoever accepts
/// this connection finds the record.
#[inline(always)]
fn publish(ctx: &SockOpsContext) {
    let Some(socket) = intercepted(ctx) else {
        return;
    };
    shortcut::prepare(sk_of(ctx), socket);
    let key = key_of(ctx, socket);
    if RECORDS.insert(key, socket.record, 0).is_err() {
        // Too late for the fail mode of this one: the relay resets it. The next ones see the mark.
        count(Counter::Unpublished);
        full_now(&RECORDS_FULL);
        return;
    }
    count(Counter::Published);
    see_states(ctx);
}

/// From here on the states of the socket are told.
#[inline(always)]
pub fn see_states(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The daemon connects: what arrives from here is its own, and `sk_lookup` sees only the tuple. That has to be known before
/// the SYN leaves, which on this host arrives at once, and until the socket is closed: with SYN cookies the listener is looked
/// for again when the handshake ends.
#[inline(always)]
fn register(ctx: &SockOpsContext) {
    let takes_arrivals = POLICY
        .get(0)
        .is_some_and(|policy| policy.dimensions & Dimensions::LISTEN != 0);
    if !takes_arrivals || !is_ours(sk_of(ctx)) {
        return;
    }
    if OWN.insert(own_key_of(ctx), 1, 0).is_err() {
        count(Counter::Unregistered);
        // The SYN is not built yet, so `reverse` knows when that one arrives.
        full_now(&OWN_FULL);
        return;
    }
    see_states(ctx);
}

/// The handshake is done and the app's `connect()` has not returned yet, nor was the connection accepted, except with
/// TCP Fast Open: from here on `sk_msg` sees what the app sends.
#[inline(always)]
fn admit(ctx: &SockOpsContext) {
    let Some(socket) = intercepted(ctx) else {
        return;
    };
    if shortcut::admit(ctx, socket).is_err()
        && let Some(record) = RECORDS.get_ptr_mut(key_of(ctx, socket))
    {
        // SAFETY: the element stays readable until this program ends, also if it is removed; it is taken by value.
        unsafe { (*record).shortcut = standing::REFUSED };
    }
}

/// Whether a connection whose socket is closed in this state may never be accepted.
///
/// An app that connects, writes and closes at once leaves a socket in `FIN_WAIT2`, which the kernel replaces by a
/// time-wait socket (`tcp_time_wait()` in `net/ipv4/tcp_minisocks.c`): closed, as far as we are told. Our FIN was
/// acknowledged then, so the listener has the connection with all its bytes in the accept queue, and needs the record.
#[inline(always)]
fn is_abandoned(state: u32) -> bool {
    state != BPF_TCP_FIN_WAIT2
}

/// The socket is closed; if nobody accepts the connection its record would stay.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let Some(socket) = intercepted(ctx) else {
        return;
    };
    if RECORDS.remove(key_of(ctx, socket)).is_ok() {
        count(Counter::Withdrawn);
    }
}

#[inline(always)]
pub fn sk_of(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn has_role(ctx: &SockOpsContext, role: u32) -> bool {
    socket_of(sk_of(ctx)).is_some_and(|socket| socket.role == role)
}

#[inline(always)]
fn intercepted(ctx: &SockOpsContext) -> Option<&'static mut Socket> {
    socket_of(sk_of(ctx)).filter(|socket| socket.role == role::INTERCEPTED)
}

/// The tuple as the relay will see it.
#[inline(always)]
fn key_of(ctx: &SockOpsContext, socket: &Socket) -> RecordKey {
    RecordKey {
        netns_cookie: socket.record.netns_cookie,
        source: local_addr(ctx, socket.listener_family == Family::V4),
        source_port: BePort::new(ctx.local_port() as u16),
        listener_port: socket.listener_port,
        reserved: 0,
    }
}

/// The tuple as whoever receives the SYN will see it.
#[inline(always)]
fn own_key_of(ctx: &SockOpsContext) -> OwnKey {
    // The daemon dials IPv4-mapped destinations as the IPv4 addresses they are.
    let is_v4 = ctx.family() == u32::from(Family::V4);
    let (dest, dest_port) = remote(ctx, is_v4);
    OwnKey {
        source: local_addr(ctx, is_v4),
        dest,
        source_port: BePort::new(ctx.local_port() as u16),
        dest_port,
    }
}

/// Address and port of the other side.
#[inline(always)]
pub fn remote(ctx: &SockOpsContext, is_v4: bool) -> (Addr, BePort) {
    // SAFETY: the context is valid while the program runs; see `address`.
    let addr = unsafe {
        address(
            is_v4,
            &raw const (*ctx.ops).remote_ip4,
            (&raw const (*ctx.ops).remote_ip6).cast(),
        )
    };
    // In network byte order in the upper half of a big-endian word (`sock_ops_convert_ctx_access()`).
    let port = BePort::new(u32::from_be(ctx.remote_port()) as u16);
    (addr, port)
}

#[inline(always)]
pub fn local_addr(ctx: &SockOpsContext, is_v4: bool) -> Addr {
    // SAFETY: the context is valid while the program runs; see `address`.
    unsafe {
        address(
            is_v4,
            &raw const (*ctx.ops).local_ip4,
            (&raw const (*ctx.ops).local_ip6).cast(),
        )
    }
}

/// One of two addresses of the context. Volatile and both: LLVM would otherwise choose between the two offsets and load
/// once, which the verifier refuses.
///
/// # Safety
/// The words must be there.
#[inline(always)]
unsafe fn address(is_v4: bool, v4: *const u32, v6: *const u32) -> Addr {
    // SAFETY: the caller's word.
    let (v4, v6) = unsafe {
        (
            v4.read_volatile(),
            [
                v6.read_volatile(),
                v6.add(1).read_volatile(),
                v6.add(2).read_volatile(),
                v6.add(3).read_volatile(),
            ],
        )
    };
    if is_v4 {
        Addr::from_v4_word(v4)
    } else {
        Addr::from_words(v6)
    }
}
