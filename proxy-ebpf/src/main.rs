//! culvert's programs in the kernel. Entry points only; each hands over to the module of its hook.
//!
//! | program | hook | kernel | what it does |
//! |---|---|---|---|
//! | `connect4`, `connect6` | `cgroup/connect4,6` | 5.8 | decides, and sends selected connections to the relay, or to an endpoint |
//! | `guard4`, `guard6` | `cgroup/connect4,6`, pinned | 5.8 | keeps `on_relay_failure = "refuse"` in force without the daemon |
//! | `tcp_events` | `sockops` | 5.8 | publishes the record before the SYN leaves, withdraws it with the socket; tells which endpoints cannot be reached |
//! | `getpeername4`, `getpeername6` | `cgroup/getpeername4,6` | 5.8 | tells the app the address it asked for |
//! | `getsockopt` | `cgroup/getsockopt` | 5.3 | answers `SO_ORIGINAL_DST` |
//! | `verdict` | `sk_skb/stream_verdict` | 5.10 | moves the bytes of accelerated connections from socket to socket |
//! | `shortcut` | `sk_msg`, on the sockets in `APPS` | 5.10 | sends an app's bytes straight into the upstream socket |
//! | `reply` | `sk_skb/stream_verdict` | 6.4 | puts small replies of upstream sockets straight into the app's receive queue |
//! | `delivered` | none: run by the relay | 6.4 | tells whether such replies have arrived there, and whether they were read |
//! | `own_events` | `sockops`, on the daemon's cgroup | 5.8 | registers the daemon's connections, which `reverse` must not take again |
//! | `reverse` | `sk_lookup` | 5.9 | decides about what arrives, and gives it to the relay's listeners |
//! | `reverse_guard` | `sk_lookup`, pinned | 5.9 | keeps `on_relay_failure = "refuse"` of such rules in force without the daemon |
//! | `returns` | `tc` ingress of interfaces | 5.10 | has answers to the addresses of clients, which the relay has connected from, delivered here |
//! | `gateway` | `tc` ingress of interfaces | 5.10 | decides about what passes through, and has the relay's listeners get it |
//! | `gateway_guard` | `tc` ingress, pinned | 5.10 | keeps what was relayed, or is to be refused, from being routed on without the daemon |
//! | `gateway_again` | `sk_lookup` | 5.9 | has the listeners get SYNs that meet what is left of the last connection of their addresses |
//! | `router` | `tc` ingress of interfaces | 5.10 | sends on what passes between them, past netfilter |
//! | `netns` | `cgroup/connect4`, on the daemon's cgroup for a moment | 5.8 | tells the daemon its network namespace, before 5.14 |
//! | `watch4`, `watch6` | `cgroup/connect4,6` | 5.8 | look on, for `culvert watch` |
//! | `watch_events` | `sockops` | 5.9 | tells it what becomes of the connection |
//! | `watch_release` | `cgroup/sock_release` | 5.9 | tells it of those of which no packet was sent |
//! | `task_fork`, `task_exit` | raw tracepoints | 4.17 | follow the children of processes that rules name |
//!
//! This is one source for all kernels from 5.10 on. What comments say that the verifier wants, such as fields of a context accessed one by
//! one and at fixed offsets, all of them want, unless a comment names some.

#![no_std]
#![no_main]
#![expect(
    unreachable_pub,
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "program entry points are exported by name and handed their context, and their attribute macros leave the documentation on the inner function"
)]
#![expect(
    clippy::inline_always,
    reason = "a function that is not inlined is checked by the verifier on its own, without what its caller knows"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "helpers and contexts pack two halves into one word, and want signed small constants"
)]

mod again;
mod caller;
mod connect;
mod full;
mod gateway;
mod getsockopt;
mod glance;
mod globals;
mod guard;
mod headers;
mod inherited;
mod kernel;
mod known;
mod maps;
mod namespace;
mod packet;
mod peername;
mod plain;
mod policy;
mod recipient;
mod relay;
mod replies;
mod returns;
mod reverse;
mod rewrite;
mod router;
mod sequence;
mod shortcut;
mod sockops;
mod tasks;
mod traces;
mod verdict;
mod version;
mod watch;
mod way;

use core::ffi::c_void;

use aya_ebpf::{
    macros::{
        cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, raw_tracepoint, sk_lookup,
        sk_msg, sock_ops, stream_verdict,
    },
    programs::{
        RawTracePointContext, SkBuffContext, SkLookupContext, SkMsgContext, SockAddrContext,
        SockContext, SockOpsContext, SockoptContext, TcContext,
    },
};

/// `connect()` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&version::V4, &ctx)
}

/// `connect()` on an IPv6 socket, IPv4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&version::V6, &ctx)
}

/// After `connect4`, and instead of it once the daemon is gone.
#[cgroup_sock_addr(connect4)]
pub fn guard4(ctx: SockAddrContext) -> i32 {
    guard::guard(&version::V4, &ctx)
}

/// After `connect6`, and instead of it once the daemon is gone.
#[cgroup_sock_addr(connect6)]
pub fn guard6(ctx: SockAddrContext) -> i32 {
    guard::guard(&version::V6, &ctx)
}

/// `getpeername()` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peername::getpeername(&version::V4, &ctx)
}

/// `getpeername()` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    peername::getpeername(&version::V6, &ctx)
}

/// `getsockopt()` on any socket.
#[cgroup_sockopt(getsockopt)]
pub fn getsockopt(ctx: SockoptContext) -> i32 {
    getsockopt::getsockopt(&ctx)
}

/// Events of any TCP socket.
#[sock_ops]
pub fn tcp_events(ctx: SockOpsContext) -> u32 {
    sockops::sockops(&ctx)
}

/// Events of the daemon's TCP sockets.
#[sock_ops]
pub fn own_events(ctx: SockOpsContext) -> u32 {
    sockops::own(&ctx)
}

/// Bytes on a socket of an accelerated connection.
#[stream_verdict]
pub fn verdict(ctx: SkBuffContext) -> u32 {
    verdict::verdict(&ctx)
}

/// `send()` on an app's socket that takes part in the shortcut.
#[sk_msg]
pub fn shortcut(ctx: SkMsgContext) -> u32 {
    shortcut::send(&ctx)
}

/// Bytes on an upstream socket whose replies may go past the relay.
#[stream_verdict]
pub fn reply(ctx: SkBuffContext) -> u32 {
    replies::reply(&ctx)
}

/// Run by the relay. Without the attribute macro, which would return 0.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint")]
pub extern "C" fn delivered(ctx: *mut c_void) -> u32 {
    replies::delivered(&RawTracePointContext::new(ctx))
}

/// A connection arrives.
#[sk_lookup]
pub fn reverse(ctx: SkLookupContext) -> u32 {
    reverse::lookup(&ctx)
}

/// Beside `reverse`, and instead of it once the daemon is gone.
#[sk_lookup]
pub fn reverse_guard(ctx: SkLookupContext) -> u32 {
    reverse::guard(&ctx)
}

/// A packet comes in by an interface that servers answer by.
#[classifier]
pub fn returns(ctx: TcContext) -> i32 {
    returns::ingress(&ctx)
}

/// A packet comes in by an interface that connections pass through by.
#[classifier]
pub fn gateway(ctx: TcContext) -> i32 {
    gateway::ingress(&ctx)
}

/// The kernel looks for a listener for what `gateway` gave to the rest of a connection.
#[sk_lookup]
pub fn gateway_again(ctx: SkLookupContext) -> u32 {
    again::lookup(&ctx)
}

/// After `gateway`, and instead of it once the daemon is gone.
#[classifier]
pub fn gateway_guard(ctx: TcContext) -> i32 {
    gateway::guard(&ctx)
}

/// A packet comes in by an interface of the fast path. After all other programs of ours.
#[classifier]
pub fn router(ctx: TcContext) -> i32 {
    router::ingress(&ctx)
}

/// The daemon asks where it is.
#[cgroup_sock_addr(connect4)]
pub fn netns(ctx: SockAddrContext) -> i32 {
    namespace::tell(&ctx)
}

/// `connect()` on an IPv4 socket is watched.
#[cgroup_sock_addr(connect4)]
pub fn watch4(ctx: SockAddrContext) -> i32 {
    watch::connect(&version::V4, &ctx)
}

/// `connect()` on an IPv6 socket is watched.
#[cgroup_sock_addr(connect6)]
pub fn watch6(ctx: SockAddrContext) -> i32 {
    watch::connect(&version::V6, &ctx)
}

/// Events of TCP sockets that are watched.
#[sock_ops]
pub fn watch_events(ctx: SockOpsContext) -> u32 {
    watch::events(&ctx)
}

/// A socket is closed that may have been watched.
#[cgroup_sock(sock_release)]
pub fn watch_release(ctx: SockContext) -> i32 {
    watch::released(&ctx)
}

/// A task was forked.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn task_fork(ctx: RawTracePointContext) -> i32 {
    tasks::fork(&ctx)
}

/// A task ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn task_exit(_ctx: RawTracePointContext) -> i32 {
    tasks::exit()
}

/// Cannot happen: nothing here can panic, and the verifier would refuse the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
