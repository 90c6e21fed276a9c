//! Where relays listen, and whether ours is alive.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    },
    programs::SockAddrContext,
};
use proxy_common::{Addr, BePort, Relay, Space, relay};

use crate::{
    maps::{HEARTBEAT, RELAY, SPACES},
    rewrite,
};

/// Whether the daemon whose place we take has sent the connection to its own listener, or to an endpoint: while both are attached
/// its hooks run before ours. It has counted it, too.
#[inline(always)]
pub fn is_taken(ctx: &SockAddrContext, addr: &Addr, port: BePort) -> bool {
    RELAY
        .get(relay::PREDECESSOR)
        .filter(|relay| relay.netns_cookie != 0)
        .is_some_and(|relay| {
            is_listener(ctx, relay, addr, port) || rewrite::was_sent(ctx, addr, port)
        })
}

/// Whether the program runs for a daemon: ours, or the one whose place it takes, until that is told to end. Only while ours is alive:
/// it removes the other's number when that has ended, and whoever has its own later is somebody else.
#[inline(always)]
pub fn is_called_by_daemon() -> bool {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    let is_it = |relay: &Relay| relay.process != 0 && relay.process == process;
    let Some(own) = RELAY.get(relay::OWN) else {
        return false;
    };
    (is_it(own) || RELAY.get(relay::PREDECESSOR).is_some_and(is_it))
        // SAFETY: no arguments, a plain number out.
        && is_alive(own, unsafe { bpf_ktime_get_ns() })
}

/// Whether a destination is one of a relay's listeners, which are on loopback: of its own network namespace, or, where the relay is
/// ours, of one that it has opened some in.
#[inline(always)]
pub fn is_listener(ctx: &SockAddrContext, relay: &Relay, addr: &Addr, port: BePort) -> bool {
    if !addr.is_loopback() {
        return false;
    }
    // SAFETY: a plain helper call.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if netns_cookie == relay.netns_cookie {
        relay.listens_on(addr, port)
    } else {
        space_of(netns_cookie).is_some_and(|space| space.listens_on(addr, port))
    }
}

/// Where we listen in a network namespace that is not our own.
#[inline(always)]
pub fn space_of(netns_cookie: u64) -> Option<Space> {
    // SAFETY: taken by value; in a hash without preallocation an element that is removed is freed only when no program runs any more.
    unsafe { SPACES.get(netns_cookie) }.copied()
}

/// Whether the relay gave a sign of life within the timeout.
#[inline(always)]
pub fn is_alive(relay: &Relay, now: u64) -> bool {
    let last = HEARTBEAT.get(0).map_or(0, |at| *at);
    // The heartbeat may be written between our reading the clock and reading it: then it is in the future.
    last != 0 && (last >= now || now - last < relay.heartbeat_timeout)
}
