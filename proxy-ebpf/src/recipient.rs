//! Which socket of this host a packet is for, and what has it get there.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use proxy_common::{Family, GATES as MOST_GATES, OwnKey, Passage, listener};

use crate::{
    maps::{ABROAD, GATES, PASSAGE, is_foreign},
    packet::Packet,
};

/// In the network namespace of the interface (`BPF_F_CURRENT_NETNS`).
const HERE: u64 = u64::MAX;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// Whose a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A socket of ours with a foreign address, a server's or a client's, which the packet is assigned to.
    Ours,
    /// Another socket of this host; or a handshake, or what is left of a connection that has ended, which do not tell whose they
    /// are and have the packet assigned to them.
    Other,
    Nobody,
}

/// The socket of a TCP packet in the network namespace of the interface, or null. It has to be given back by `bpf_sk_release`.
#[inline(always)]
pub fn lookup(ctx: &TcContext, family: u16, key: &OwnKey) -> *mut bpf_sock {
    // SAFETY: integers, for which zeros are a value.
    let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
    let (source, dest) = (key.source.words(), key.dest.words());
    let length = if family == Family::V4 {
        // SAFETY: integers again; either half is one.
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        v4.saddr = source[3];
        v4.daddr = dest[3];
        v4.sport = key.source_port.0;
        v4.dport = key.dest_port.0;
        size_of_val(v4)
    } else {
        // SAFETY: as above.
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = source;
        v6.daddr = dest;
        v6.sport = key.source_port.0;
        v6.dport = key.dest_port.0;
        size_of_val(v6)
    };
    // SAFETY: the kernel reads `length` bytes of the tuple.
    unsafe { bpf_skc_lookup_tcp(ctx.skb.skb.cast(), &raw mut tuple, length as u32, HERE, 0) }
}

/// Finds the socket of a packet, and has it get that. A listener is none: it would be one for an address of this host.
#[inline(always)]
pub fn holder(ctx: &TcContext, packet: &Packet) -> Holder {
    let found = lookup(ctx, packet.family, &packet.key);
    if found.is_null() {
        return Holder::Nobody;
    }
    // SAFETY: the socket is there until it is given back.
    unsafe {
        let state = (&raw const (*found).state).read_volatile();
        let holder = match state {
            TCP_LISTEN => Holder::Nobody,
            // Whoever opens the same connection once more does not wait for the end of the last one.
            TCP_TIME_WAIT if packet.opens() => Holder::Nobody,
            TCP_TIME_WAIT | TCP_NEW_SYN_RECV => {
                give(ctx, packet, found);
                Holder::Other
            }
            _ if ABROAD.has(found) || is_foreign(found) => {
                give(ctx, packet, found);
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
pub fn assign_gate(
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

/// As [`assign`], for what has a socket already. An error finds it by itself.
#[inline(always)]
fn give(ctx: &TcContext, packet: &Packet, sk: *mut bpf_sock) {
    if packet.is_error {
        deliver(ctx);
    } else {
        assign(ctx, sk);
    }
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
pub fn is_delivered(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    Passage::is_mark(unsafe { (&raw const (*ctx.skb.skb).mark).read_volatile() })
}
