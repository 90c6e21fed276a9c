//! Where relays listen, and whether ours is alive.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext,
};
use proxy_common::{Addr, BePort, Relay, relay};

use crate::{
    maps::{HEARTBEAT, RELAY},
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

/// Whether a destination is one of our listeners, which are on the loopback of one network namespace only.
#[inline(always)]
pub fn is_listener(ctx: &SockAddrContext, relay: &Relay, addr: &Addr, port: BePort) -> bool {
    relay.listens_on(addr, port)
        // SAFETY: a plain helper call.
        && unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == relay.netns_cookie
}

/// Whether the relay gave a sign of life within the timeout.
#[inline(always)]
pub fn is_alive(relay: &Relay, now: u64) -> bool {
    let last = HEARTBEAT.get(0).map_or(0, |at| *at);
    // The heartbeat may be written between our reading the clock and reading it: then it is in the future.
    last != 0 && (last >= now || now - last < relay.heartbeat_timeout)
}
