//! `connect()`: which connections go to the relay.
//!
//! The order matters. Nothing of the app's call is changed before everything that the relay will need is in
//! place, and every way out is counted. What happens to a connection that was selected but cannot be answered is
//! the rule's fail mode, never a redirect into nothing.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie,
            bpf_ktime_get_ns, bpf_set_retval,
        },
    },
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use proxy_common::{
    Action, Addr, BePort, Counter, Decision, Family, Hit, Relay, RuleRef, Socket, Space, decide,
    fail_mode, relay, role, standing, verb,
};

use crate::{
    caller::{free_of_device, is_own, is_tcp, sk_of},
    full::was_full,
    globals::{self, has_shortcut},
    maps::{RECORDS_FULL, RELAY, SOCKETS, SPACE_EVENTS, count, hit, mptcp_socket_of},
    policy::{Connector, KernelTables},
    relay::{is_alive, is_listener, is_taken, space_of},
    rewrite,
    version::Version,
};

/// Verdict of a `connect` hook: go on.
pub const PROCEED: i32 = 1;
/// Verdict of a `connect` hook: fail with EPERM, or with what `bpf_set_retval` said.
pub const REJECT: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// Where a listener of a family listens, for an app's socket of either family: `127.0.0.1`, `::ffff:127.0.0.1` or
/// `::1`.
#[inline(always)]
fn listener_addr(family: u16) -> Addr {
    if family == Family::V4 {
        Addr::from_v4([127, 0, 0, 1])
    } else {
        Addr::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])])
    }
}

/// Why a selected connection cannot go to the relay.
struct Fault(Counter);

/// Decides about one `connect()`.
#[inline(always)]
pub fn connect(version: &Version, ctx: &SockAddrContext) -> i32 {
    if !is_tcp(ctx) {
        return PROCEED;
    }
    let (addr, port) = version.addr(ctx);
    if is_taken(ctx, &addr, port) {
        return PROCEED;
    }
    count(Counter::Seen);
    if is_own(ctx) {
        count(Counter::Own);
        return PROCEED;
    }
    let relay = RELAY.get(relay::OWN);
    if relay.is_some_and(|relay| is_listener(ctx, relay, &addr, port)) {
        // The relay finds no record of it and resets it: nobody can talk to the listener, nothing loops.
        count(Counter::Loop);
        return forget(ctx);
    }
    let decision = decide(&KernelTables, &Connector { addr, port });
    if let Decision::Selected(rule, _) = decision {
        hit(Hit::Selected, rule);
    }
    match decision {
        Decision::Selected(rule, action) if action.verb == verb::RELAY => {
            let sent = match relay {
                Some(relay) => send(version, ctx, relay, rule, &action, addr, port),
                None => Err(Fault(Counter::FailHeartbeat)),
            };
            match sent {
                Ok(way) => {
                    count(way);
                    PROCEED
                }
                Err(Fault(why)) => {
                    count(why);
                    debug!(
                        ctx,
                        "rule {} cannot reach the relay, fault {}", rule.index, why as u32
                    );
                    hit(Hit::Failed, rule);
                    fail(ctx, &action)
                }
            }
        }
        Decision::Selected(_, action) if action.verb == verb::REFUSE => {
            count(Counter::Refused);
            refuse()
        }
        _ => {
            count(Counter::Direct);
            forget(ctx)
        }
    }
}

/// Sends the connection to an endpoint where the rule allows that and there is one for it, otherwise to the relay. Both need the
/// daemon: who knows nothing of endpoints that died since must not choose among them, and names and loopback addresses of
/// another network namespace mean others.
#[inline(always)]
fn send(
    version: &Version,
    ctx: &SockAddrContext,
    relay: &Relay,
    rule: RuleRef,
    action: &Action,
    addr: Addr,
    port: BePort,
) -> Result<Counter, Fault> {
    // SAFETY: plain helper calls.
    let (now, netns_cookie) = unsafe { (bpf_ktime_get_ns(), bpf_get_netns_cookie(ctx.as_ptr())) };
    if !is_alive(relay, now) {
        return Err(Fault(Counter::FailHeartbeat));
    }
    let is_ours = netns_cookie == relay.netns_cookie;
    let place = Place {
        netns_cookie,
        space: if is_ours {
            relay.space()
        } else {
            elsewhere(action, netns_cookie)?
        },
    };
    if is_ours
        && action.group != 0
        && rewrite::to_endpoint(version, ctx, action.group, addr, port).is_some()
    {
        return Ok(Counter::Rewritten);
    }
    to_relay(version, ctx, &place, rule, action, addr, port, now)?;
    if !is_ours {
        rewrite::tell_successor(
            ctx,
            &listener_addr(family_of(&addr)),
            place.space.port(&addr),
        );
    }
    Ok(Counter::Relayed)
}

/// A network namespace, and where the relay listens in it.
struct Place {
    netns_cookie: u64,
    space: Space,
}

/// Where the relay listens in a network namespace that is not its own. Where a rule wants that and it does not yet, it is told of the
/// process, in whose namespace it then opens listeners.
#[inline(always)]
fn elsewhere(action: &Action, netns_cookie: u64) -> Result<Space, Fault> {
    if action.spaces == 0 {
        return Err(Fault(Counter::FailNetns));
    }
    if let Some(space) = space_of(netns_cookie) {
        return Ok(space);
    }
    // Where there is no room there are events enough to have the relay look.
    let _ = SPACE_EVENTS.output(bpf_get_current_pid_tgid() >> 32, 0);
    Err(Fault(Counter::FailNetns))
}

/// The family of the listener that an address is sent to. An IPv6 socket keeps to IPv4 for an IPv4-mapped destination: it may be
/// bound to a mapped address.
#[inline(always)]
fn family_of(addr: &Addr) -> u16 {
    if addr.is_v4() { Family::V4 } else { Family::V6 }
}

/// Remembers the connection on its socket, then points the call at the listener.
#[expect(clippy::too_many_arguments, reason = "inlined into its one caller")]
#[inline(always)]
fn to_relay(
    version: &Version,
    ctx: &SockAddrContext,
    place: &Place,
    rule: RuleRef,
    action: &Action,
    addr: Addr,
    port: BePort,
    now: u64,
) -> Result<(), Fault> {
    let (listener_family, listener_port) = (family_of(&addr), place.space.port(&addr));
    if listener_port.0 == 0 {
        return Err(Fault(Counter::FailFamily));
    }
    if was_full(&RECORDS_FULL, now) {
        return Err(Fault(Counter::FailFull));
    }
    if !free_of_device(ctx) {
        return Err(Fault(Counter::FailDevice));
    }
    // SAFETY: the socket of the context is alive while the program runs, and so is its storage.
    let socket = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() };
    let Some(socket) = socket else {
        return Err(Fault(Counter::FailMemory));
    };
    fill(socket, version.family, rule, addr, port);
    socket.listener_family = listener_family;
    socket.listener_port = listener_port;
    socket.record.connect_ns = now;
    socket.record.netns_cookie = place.netns_cookie;
    // SAFETY: a plain helper call; in this hook it takes the context. (Kernel 4.18.)
    socket.record.cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    socket.record.shortcut = if action.shortcut == 0 || !has_shortcut() {
        standing::UNASKED
    } else if socket.admitted != 0 {
        standing::REUSED
    } else {
        standing::READY
    };
    socket.role = role::INTERCEPTED;
    if let Some(above) = mptcp_socket_of(sk_of(ctx)) {
        if socket.record.shortcut == standing::READY {
            socket.record.shortcut = standing::MPTCP;
        }
        *above = *socket;
    }
    version.set_addr(ctx, listener_addr(listener_family), listener_port);
    Ok(())
}

/// Notes who connects where.
#[inline(always)]
fn fill(socket: &mut Socket, family: u16, rule: RuleRef, addr: Addr, port: BePort) {
    let record = &mut socket.record;
    let owner = bpf_get_current_uid_gid();
    record.orig_addr = addr;
    record.orig_port = port;
    record.family = family;
    record.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    record.uid = owner as u32;
    record.gid = (owner >> 32) as u32;
    record.rule = rule;
    // SAFETY: no arguments, a plain number out.
    record.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    record.comm = bpf_get_current_comm().unwrap_or_default();
}

/// Applies a rule's fail mode.
#[inline(always)]
fn fail(ctx: &SockAddrContext, action: &Action) -> i32 {
    if action.on_relay_failure == fail_mode::REFUSE {
        count(Counter::FailedRefused);
        refuse()
    } else {
        count(Counter::FailedDirect);
        forget(ctx)
    }
}

/// Lets the connection go direct. A socket may have been intercepted before (a failed `connect()` can be repeated,
/// and `AF_UNSPEC` disconnects): then it must not answer with its old destination.
#[inline(always)]
fn forget(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the socket of the context is alive while the program runs.
    if let Some(socket) = unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() } {
        socket.role = 0;
        if let Some(above) = mptcp_socket_of(sk_of(ctx)) {
            above.role = 0;
        }
    }
    PROCEED
}

/// Fails the `connect()`: with ECONNREFUSED where the kernel lets us say so, otherwise with EPERM.
#[inline(always)]
pub fn refuse() -> i32 {
    if globals::has_set_retval() {
        // SAFETY: a plain number in.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REJECT
}
