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
use proxy_common::{Addr, Family, GATES as MOST_GATES, OwnKey, Passage, listener};

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
    /// What is left of a connection that has ended (`TIME_WAIT`), when a SYN opens the same once more, and does not wait a minute for that.
    Past,
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
            TCP_TIME_WAIT if packet.opens() => Holder::Past,
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

/// Gives a SYN to what is left of the last connection of its addresses, and says whether there was any.
///
/// The kernel judges by its sequence number whether it is a new one, ends the old one, and looks for a listener, which
/// [`again`](crate::again) chooses. A listener that the SYN was assigned to would drop it, until the old one is over: since kernel
/// 6.11 it keeps nothing of a handshake whose addresses anybody has (`reqsk_queue_hash_req()` in `net/ipv4/inet_connection_sock.c`).
#[inline(always)]
pub fn assign_past(ctx: &TcContext, packet: &Packet) -> bool {
    let found = lookup(ctx, packet.family, &packet.key);
    if found.is_null() {
        return false;
    }
    // SAFETY: the socket is there until it is given back.
    unsafe {
        let is_past = (&raw const (*found).state).read_volatile() == TCP_TIME_WAIT;
        let is_assigned = is_past && assign(ctx, found);
        bpf_sk_release(found.cast());
        is_assigned
    }
}

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

/// The listener for a packet.
#[inline(always)]
fn gate(packet: &Packet) -> Option<*mut bpf_sock> {
    let index = gate_of(packet.family, &packet.key)?;
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

/// Which listener is for a connection, by its place among [`GATES`]: the same one for all packets of the client's, as only the one that
/// has sent a SYN cookie takes it back. Each has a port of its own: to one of several that share a port packets cannot be assigned
/// before kernel 6.6.
#[inline(always)]
pub fn gate_of(family: u16, key: &OwnKey) -> Option<u32> {
    let gates = PASSAGE.get(0)?.gates;
    if gates == 0 {
        return None;
    }
    let family = if family == Family::V4 {
        listener::V4
    } else {
        listener::V6
    };
    Some(hash(key) % gates % (MOST_GATES as u32) * (listener::COUNT as u32) + family)
}

#[inline(always)]
fn hash(key: &OwnKey) -> u32 {
    let folded = |addr: Addr| {
        let [a, b, c, d] = addr.words();
        a ^ b ^ c ^ d
    };
    let ports = u32::from(key.source_port.0) << 16 | u32::from(key.dest_port.0);
    let mixed = folded(key.source).wrapping_mul(0x9e37_79b1)
        ^ folded(key.dest).wrapping_mul(0x85eb_ca77)
        ^ ports.wrapping_mul(0xc2b2_ae3d);
    let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x2c1b_3c6d);
    mixed ^ mixed >> 16
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
