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
//! What is not ours goes on as if we were not there: the verdict never ends the chain of programs, ours or anybody's
//! (`TC_ACT_UNSPEC` of `cls_bpf` is `TCX_NEXT` of tcx links), except by dropping what a rule says to refuse.
//!
//! A connection is ours from its SYN on, and only a SYN makes one ours. The rest of what passes through is told by sockets. One
//! that had a socket is remembered, so that its packets are not routed on to the server when the socket is gone: they are
//! given to a listener, which has the kernel answer by a reset, or, without the daemon, dropped by the guard. (The sockets of
//! a daemon that is killed are reset by the kernel; this is about packets that cross, or that are sent because a reset was
//! lost.) The memory forgets the oldest first, and a SYN that is not ours clears what it has.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use proxy_common::{
    Action, Counter, Decision, Family, GATES as MOST_GATES, Passage, fail_mode, listener, relay,
    transit, verb,
};

use crate::{
    maps::{ABROAD, GATES, PASSAGE, RELAY, RELAYED, count},
    packet::Packet,
    policy::KernelTables,
    relay::is_alive,
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`: drop.
const DROP: i32 = 2;

/// In the network namespace of the interface (`BPF_F_CURRENT_NETNS`).
const HERE: u64 = u64::MAX;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// Decides about one packet.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    let Some(packet) = Packet::of(ctx) else {
        return NEXT;
    };
    match holder(ctx, &packet) {
        Holder::Ours => {
            remember(&packet);
            NEXT
        }
        Holder::Other => NEXT,
        Holder::Nobody if packet.opens() => open(ctx, &packet),
        Holder::Nobody => go_on(ctx, &packet),
    }
}

/// What stays when the daemon is gone. It runs after [`ingress`], and needs no sign from it but the mark.
#[inline(always)]
pub fn guard(ctx: &TcContext) -> i32 {
    if is_delivered(ctx) {
        return NEXT;
    }
    let Some(packet) = Packet::of(ctx) else {
        return NEXT;
    };
    let is_remembered = was_relayed(&packet);
    if is_remembered && !packet.opens() {
        count(Counter::TransitHeld);
        return DROP;
    }
    match transit(&KernelTables, &packet) {
        Decision::Selected(_, action)
            if action.verb != verb::DIRECT
                && action.on_relay_failure == fail_mode::REFUSE
                && packet.passes_through(ctx) =>
        {
            count(Counter::TransitHeld);
            return DROP;
        }
        _ => {}
    }
    if is_remembered {
        forget(&packet);
    }
    NEXT
}

/// Decides about a SYN.
#[inline(always)]
fn open(ctx: &TcContext, packet: &Packet) -> i32 {
    let Decision::Selected(_, action) = transit(&KernelTables, packet) else {
        forget(packet);
        return NEXT;
    };
    if action.verb == verb::DIRECT || !packet.passes_through(ctx) {
        forget(packet);
        return NEXT;
    }
    count(Counter::Transit);
    if action.verb == verb::REFUSE {
        count(Counter::TransitRefused);
        return DROP;
    }
    match to_relay(ctx, packet) {
        Ok(()) => {
            count(Counter::TransitRelayed);
            NEXT
        }
        Err(why) => {
            count(why);
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
fn to_relay(ctx: &TcContext, packet: &Packet) -> Result<(), Counter> {
    let Some(relay) = RELAY.get(relay::OWN) else {
        return Err(Counter::FailHeartbeat);
    };
    // SAFETY: no arguments, a plain number out.
    if !is_alive(relay, unsafe { bpf_ktime_get_ns() }) {
        return Err(Counter::FailHeartbeat);
    }
    if assign_gate(ctx, packet, |_| true) {
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

/// Whose a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A socket of ours with a foreign address, which the packet is assigned to.
    Ours,
    /// Another socket of this host; or a handshake, or what is left of a connection that has ended, which do not tell whose they
    /// are and have the packet assigned to them.
    Other,
    Nobody,
}

/// Finds the socket of a packet, and has it get that. A listener is none: it would be one for an address of this host.
#[inline(always)]
fn holder(ctx: &TcContext, packet: &Packet) -> Holder {
    // SAFETY: integers, for which zeros are a value.
    let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
    let (source, dest) = (packet.key.source.words(), packet.key.dest.words());
    let length = if packet.family == Family::V4 {
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        v4.saddr = source[3];
        v4.daddr = dest[3];
        v4.sport = packet.key.source_port.0;
        v4.dport = packet.key.dest_port.0;
        size_of_val(v4)
    } else {
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = source;
        v6.daddr = dest;
        v6.sport = packet.key.source_port.0;
        v6.dport = packet.key.dest_port.0;
        size_of_val(v6)
    };
    // SAFETY: the kernel reads `length` bytes of the tuple; the reference that a look-up takes is given back.
    unsafe {
        let found = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), &raw mut tuple, length as u32, HERE, 0);
        if found.is_null() {
            return Holder::Nobody;
        }
        let state = (&raw const (*found).state).read_volatile();
        let holder = match state {
            TCP_LISTEN => Holder::Nobody,
            // Whoever opens the same connection once more does not wait for the end of the last one.
            TCP_TIME_WAIT if packet.opens() => Holder::Nobody,
            TCP_TIME_WAIT | TCP_NEW_SYN_RECV => {
                assign(ctx, found);
                Holder::Other
            }
            _ if ABROAD.has(found) => {
                assign(ctx, found);
                Holder::Ours
            }
            _ => Holder::Other,
        };
        bpf_sk_release(found.cast());
        holder
    }
}

const TCP_NEW_SYN_RECV: u32 = 12;

/// Gives a packet to a listener of the relay if that is right for it, and says whether it was.
#[inline(always)]
fn assign_gate(
    ctx: &TcContext,
    packet: &Packet,
    is_right: impl FnOnce(*mut bpf_sock) -> bool,
) -> bool {
    let Some(gate) = gate(packet) else {
        return false;
    };
    let is_assigned = is_right(gate) && assign(ctx, gate);
    // SAFETY: the reference that the look-up took is given back, once.
    unsafe { bpf_sk_release(gate.cast()) };
    is_assigned
}

/// The listener for a packet, the same one for all packets of its connection: only the one that has sent a SYN cookie takes it
/// back. Each has a port of its own: to one of several that share a port packets cannot be assigned before kernel 6.6.
#[inline(always)]
fn gate(packet: &Packet) -> Option<*mut bpf_sock> {
    let gates = PASSAGE.get(0)?.gates;
    if gates == 0 {
        return None;
    }
    let family = if packet.family == Family::V4 {
        listener::V4
    } else {
        listener::V6
    };
    let index = packet.hash() % gates % (MOST_GATES as u32) * (listener::COUNT as u32) + family;
    // SAFETY: the map takes a `u32` as its key; whoever asked gives the reference back.
    let gate: *mut bpf_sock = unsafe {
        bpf_map_lookup_elem(
            (&raw const GATES).cast_mut().cast(),
            (&raw const index).cast(),
        )
    }
    .cast();
    (!gate.is_null()).then_some(gate)
}

/// Gives a packet to a socket, and has it routed to this host.
#[inline(always)]
fn assign(ctx: &TcContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: both are pointers of the kernel's; the packet takes a reference of its own.
    let is_assigned = unsafe { bpf_sk_assign(ctx.skb.skb.cast(), sk.cast(), 0) } == 0;
    if is_assigned {
        deliver(ctx);
    }
    is_assigned
}

/// Has a packet routed to this host.
#[inline(always)]
fn deliver(ctx: &TcContext) {
    if let Some(passage) = PASSAGE.get(0)
        && passage.mark != 0
    {
        ctx.set_mark(passage.mark);
    }
}

#[inline(always)]
fn is_delivered(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    Passage::is_mark(unsafe { (&raw const (*ctx.skb.skb).mark).read_volatile() })
}

#[inline(always)]
fn was_relayed(packet: &Packet) -> bool {
    // SAFETY: the value means nothing; that there is one does.
    unsafe { RELAYED.get(&packet.key) }.is_some()
}

#[inline(always)]
fn remember(packet: &Packet) {
    // Looking it up is what keeps it from being forgotten.
    if !was_relayed(packet) {
        let _ = RELAYED.insert(&packet.key, &1, 0);
    }
}

#[inline(always)]
fn forget(packet: &Packet) {
    let _ = RELAYED.remove(&packet.key);
}
