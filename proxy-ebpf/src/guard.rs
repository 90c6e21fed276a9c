//! What stays when the daemon is gone: connections of rules with `on_relay_failure = "refuse"` are refused.
//!
//! The guard runs after `connect` on the same cgroup and its link is pinned, so it survives `SIGKILL`. It needs
//! no sign from `connect`: a connection of such a rule that was sent to the relay shows the listener's address
//! by now, and one that still shows its own destination was not, whatever the reason. Only one that `connect` sent to an endpoint
//! may look the same, and is marked.

use aya_ebpf::programs::SockAddrContext;
use proxy_common::{Counter, Decision, decide, fail_mode, relay, verb};

use crate::{
    caller::{is_own, is_tcp},
    connect::{PROCEED, refuse},
    maps::{RELAY, count},
    policy::{Connector, KernelTables},
    relay::{is_listener, is_taken},
    rewrite,
    version::Version,
};

/// Refuses what must not go direct.
#[inline(always)]
pub fn guard(version: &Version, ctx: &SockAddrContext) -> i32 {
    if !is_tcp(ctx) || is_own(ctx) {
        return PROCEED;
    }
    let (addr, port) = version.addr(ctx);
    if rewrite::was_chosen(ctx, &addr, port) {
        return PROCEED;
    }
    let is_relayed = RELAY
        .get(relay::OWN)
        .is_some_and(|relay| is_listener(ctx, relay, &addr, port));
    if is_relayed || is_taken(ctx, &addr, port) {
        return PROCEED;
    }
    match decide(&KernelTables, &Connector { addr, port }) {
        Decision::Selected(_, action)
            if action.verb != verb::DIRECT && action.on_relay_failure == fail_mode::REFUSE =>
        {
            count(Counter::GuardRefused);
            refuse()
        }
        _ => PROCEED,
    }
}
