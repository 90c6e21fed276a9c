//! `tc` ingress: which connections that pass through this host go to the relay, and where their packets end.
//!
//! `bpf_sk_assign` says which socket a packet is for, and nothing of where it is routed to: the kernel still looks that up
//! (`ip_rcv_finish_core()`), and throws away what has a socket and is to be forwarded (`ip_forward()`). So every packet for
//! this host gets a mark too, for which there are a rule and a table in which every destination is local. Sockets have the
//! original destination for their local address then, so packets of an established one are found by their addresses. They
//! would need no more than the mark, and with it alone the kernel would remember the route in the socket (`tcp_v4_early_demux()`);
//! they are assigned nevertheless, so that one is thrown away, and not routed on to the server, whenever the rule is missing.
//!
//! Whether somebody has assigned a packet already cannot be told: what a veth hands over still has the socket of its sender, in
//! another namespace (`skb_scrub_packet()` keeps it since 4.18). So the last program of several that want a connection has it.
//!
//! An ICMP error about a packet that a socket with a foreign address has sent goes to that address, and has to get here like the
//! packets that it is about: it is delivered, and finds its socket by what it quotes.
//!
//! With `keep_source` the relay has sockets with the addresses of clients, too. Answers of servers to those find them in the same way,
//! by whatever interface they come in, and are remembered as the packets of clients are: a client must not get them when the
//! relay is gone.
//!
//! What is not ours goes on as if we were not there: the verdict never ends the chain of programs, ours or anybody's
//! (`TC_ACT_UNSPEC` of `cls_bpf` is `TCX_NEXT` of tcx links), except by dropping what a rule says to refuse.
//!
//! Most packets are nothing to us, and have to be told at next to no cost: see [`glance`](crate::glance).
//!
//! A connection is ours from its SYN on, and only a SYN makes one ours, or is dropped by a rule: connections that were open when it
//! came go on. The rest of what passes through is told by sockets. One that had a socket is remembered, so that its packets are not routed on to the server when the socket is gone: they are
//! given to a listener, which has the kernel answer by a reset, or, without the daemon, dropped by the guard. (The sockets of
//! a daemon that is killed are reset by the kernel; this is about packets that cross, or that are sent because a reset was
//! lost.) The memory forgets the oldest first, and a SYN that is not ours clears what it has.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::TcContext};
use proxy_common::{Action, Counter, Decision, Hit, fail_mode, relay, transit, verb};

use crate::{
    glance::is_worth_a_look,
    maps::{RELAY, RELAYED, count, hit},
    packet::Packet,
    policy::KernelTables,
    recipient::{Holder, assign_gate, assign_past, holder, is_delivered},
    relay::is_alive,
    traces,
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`: drop.
const DROP: i32 = 2;

/// Decides about one packet.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    if !is_worth_a_look(ctx) {
        return NEXT;
    }
    let Some(packet) = Packet::of(ctx) else {
        return NEXT;
    };
    match holder(ctx, &packet) {
        Holder::Ours => {
            remember(&packet);
            NEXT
        }
        Holder::Other => NEXT,
        Holder::Nobody if packet.is_error => NEXT,
        past if packet.opens() => open(ctx, &packet, past == Holder::Past),
        _ => go_on(ctx, &packet),
    }
}

/// What stays when the daemon is gone. It runs after [`ingress`], and needs no sign from it but the mark.
#[inline(always)]
pub fn guard(ctx: &TcContext) -> i32 {
    if is_delivered(ctx) || !is_worth_a_look(ctx) {
        return NEXT;
    }
    let Some(packet) = Packet::of(ctx) else {
        return NEXT;
    };
    if packet.is_error {
        return NEXT;
    }
    let is_remembered = was_relayed(&packet);
    if is_remembered && !packet.opens() {
        count(Counter::TransitHeld);
        return DROP;
    }
    if packet.may_open() && is_held(&packet) && packet.passes_through(ctx) {
        count(Counter::TransitHeld);
        return DROP;
    }
    if is_remembered {
        forget(&packet);
    }
    NEXT
}

/// Whether a rule selects it that lets nothing pass without the relay.
#[inline(always)]
fn is_held(packet: &Packet) -> bool {
    matches!(transit(&KernelTables, packet), Decision::Selected(_, action) if action.is_held())
}

/// Decides about a SYN, which may meet what is left of the last connection of its addresses.
#[inline(always)]
fn open(ctx: &TcContext, packet: &Packet, meets_past: bool) -> i32 {
    let Decision::Selected(rule, action) = transit(&KernelTables, packet) else {
        forget(packet);
        return NEXT;
    };
    if !packet.passes_through(ctx) {
        forget(packet);
        return NEXT;
    }
    hit(Hit::Passing, rule);
    if action.verb == verb::DIRECT {
        forget(packet);
        return NEXT;
    }
    count(Counter::Transit);
    if action.verb == verb::REFUSE {
        count(Counter::TransitRefused);
        return DROP;
    }
    match to_relay(ctx, packet, meets_past) {
        Ok(()) => {
            count(Counter::TransitRelayed);
            NEXT
        }
        Err(why) => {
            count(why);
            hit(Hit::PassingFailed, rule);
            fail(packet, &action)
        }
    }
}

/// Decides about a packet of a connection that nobody here knows (any more).
#[inline(always)]
fn go_on(ctx: &TcContext, packet: &Packet) -> i32 {
    if was_relayed(packet) {
        count(Counter::TransitReset);
        // Without a listener the guard drops it.
        let _ = assign_gate(ctx, packet, |_| true);
    } else if packet.acknowledges() {
        // The kernel keeps nothing of a handshake by SYN cookie; only the listener can tell, and looks only while it has sent some.
        let _ = assign_gate(ctx, packet, |gate| packet.completes_a_cookie(ctx, gate));
    }
    NEXT
}

#[inline(always)]
fn to_relay(ctx: &TcContext, packet: &Packet, meets_past: bool) -> Result<(), Counter> {
    let Some(relay) = RELAY.get(relay::OWN) else {
        return Err(Counter::FailHeartbeat);
    };
    // SAFETY: no arguments, a plain number out.
    if !is_alive(relay, unsafe { bpf_ktime_get_ns() }) {
        return Err(Counter::FailHeartbeat);
    }
    let is_given = if meets_past {
        // By this it is known again where a listener is looked for.
        remember(packet);
        assign_past(ctx, packet)
    } else {
        assign_gate(ctx, packet, |_| true)
    };
    if is_given {
        traces::leave(&packet.key);
        Ok(())
    } else {
        Err(Counter::FailListener)
    }
}

/// Applies a rule's fail mode.
#[inline(always)]
fn fail(packet: &Packet, action: &Action) -> i32 {
    if action.on_relay_failure == fail_mode::REFUSE {
        count(Counter::FailedRefused);
        DROP
    } else {
        count(Counter::FailedDirect);
        forget(packet);
        NEXT
    }
}

#[inline(always)]
fn was_relayed(packet: &Packet) -> bool {
    let key = &packet.key;
    // SAFETY: the value means nothing; that there is one does.
    unsafe { RELAYED.get(key) }.is_some()
}

#[inline(always)]
fn remember(packet: &Packet) {
    traces::keep(&packet.key);
    // Looking it up is what keeps it from being forgotten.
    if !was_relayed(packet) {
        let key = &packet.key;
        let _ = RELAYED.insert(key, 1, 0);
    }
}

#[inline(always)]
fn forget(packet: &Packet) {
    let key = &packet.key;
    let _ = RELAYED.remove(key);
}
