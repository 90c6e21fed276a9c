//! Which socket of this host a packet is for, and what has it get there.

use core::ptr;

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4Tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6Tuple,
    },
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
    let (source, dest) = (key.source.words(), key.dest.words());
    let (sport, dport) = (key.source_port.0, key.dest_port.0);
    // Each of its own length, so that no byte has to be zeroed.
    if family == Family::V4 {
        let mut tuple = Ipv4Tuple {
            saddr: source[3],
            daddr: dest[3],
            sport,
            dport,
        };
        look_up(ctx, &mut tuple)
    } else {
        let mut tuple = Ipv6Tuple {
            saddr: source,
            daddr: dest,
            sport,
            dport,
        };
        look_up(ctx, &mut tuple)
    }
}

/// By either half of a `struct bpf_sock_tuple`; the kernel tells them apart by their lengths.
#[inline(always)]
fn look_up<T>(ctx: &TcContext, tuple: &mut T) -> *mut bpf_sock {
    // SAFETY: the kernel reads so many bytes of the tuple.
    unsafe {
        bpf_skc_lookup_tcp(
            ctx.skb.skb.cast(),
            ptr::from_mut(tuple).cast(),
            size_of::<T>() as u32,
            HERE,
            0,
        )
    }
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
