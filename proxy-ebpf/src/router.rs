//! `tc` ingress of the interfaces of the fast path: what passes from one of them to another is sent on from here, without what the
//! kernel does between receiving and sending. Netfilter and `IPsec` policies are part of that.
//!
//! It runs behind the other programs of ours, and takes only what is plain: a packet of IP without options, whole, unmarked and
//! in no VLAN, from an address that would be answered by this way where `rp_filter` asks for that, to an address whose neighbour is
//! known, by an interface that it fits through. The rest is the kernel's as ever: it answers, fragments, looks for neighbours,
//! drops, and delivers.
//!
//! What the kernel would do for the same packet stays done: the route is the one that it would take (`bpf_fib_lookup`, with
//! routing rules, a moment ago at most), the lifetime is counted down, the neighbour is kept fresh and the interface's queue is passed through
//! (`bpf_redirect_neigh`). The checksum of IPv4 is changed, not checked: a wrong one stays wrong, and the next hop throws it away.
//! A priority by type of service is not given.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::bpf_redir_neigh as NextHop,
    helpers::generated::{bpf_fib_lookup, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use proxy_common::{Counter, Family, FastLink, asks, relay};

use crate::{
    globals::routes_without_daemon,
    known::Memory,
    maps::{DOUBTS, FAST_LINKS, RELAY, count},
    plain::{Plain, plain},
    relay::is_alive,
    way::Way,
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides, in the end the kernel.
const NEXT: i32 = -1;

/// What `bpf_fib_lookup` says, beside a way.
mod answer {
    pub const FOUND: i64 = 0;
    pub const BLACKHOLE: i64 = 1;
    pub const PROHIBIT: i64 = 3;
    pub const NOT_FORWARDED: i64 = 4;
    pub const FORWARDING_DISABLED: i64 = 5;
    pub const NO_NEIGHBOUR: i64 = 7;
    pub const TOO_BIG: i64 = 8;
}

/// Sends a packet on, or leaves it to the kernel.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    match route(ctx) {
        Ok(verdict) => {
            count(Counter::Fast);
            verdict
        }
        Err(why) => {
            count(why);
            NEXT
        }
    }
}

#[inline(always)]
fn route(ctx: &TcContext) -> Result<i32, Counter> {
    let packet = plain(ctx)?;
    let came_by = link(packet.way.interface).ok_or(Counter::SlowOther)?;
    let memory = Memory::of(&packet.way).ok_or(Counter::SlowOther)?;
    if let Some(way) = memory.recall(&packet.way, packet.largest) {
        return send(ctx, &packet, &way, true);
    }
    // A filter stays when the daemon is killed; what it does must not.
    if !routes_without_daemon() && !has_daemon() {
        return Err(Counter::SlowOther);
    }
    if packet.family == Family::V4 && !is_answered(ctx, &packet.way, came_by) {
        return Err(Counter::SlowSource);
    }
    let mut way = packet.way;
    match look_up(ctx, &mut way) {
        answer::FOUND => {}
        answer::BLACKHOLE..=answer::PROHIBIT => return Err(Counter::SlowUnreachable),
        answer::NOT_FORWARDED | answer::FORWARDING_DISABLED => {
            return Err(Counter::SlowNotForwarded);
        }
        answer::NO_NEIGHBOUR => return Err(Counter::SlowNeighbour),
        answer::TOO_BIG => return Err(Counter::SlowTooBig),
        _ => return Err(Counter::SlowOther),
    }
    if way.interface == packet.way.interface {
        // The sender should know a better way, which the kernel tells it.
        return Err(Counter::SlowElsewhere);
    }
    let is_heard_of = memory.has_heard_of(&way);
    if is_heard_of {
        memory.keep(&way);
    }
    send(ctx, &packet, &way, is_heard_of)
}

/// Sends a packet on by a way, whose next hop the kernel has heard of lately or not.
#[inline(always)]
fn send(ctx: &TcContext, packet: &Plain, way: &Way, is_heard_of: bool) -> Result<i32, Counter> {
    let next = link(way.interface).ok_or(Counter::SlowElsewhere)?;
    // Before 5.12 the look-up compares with the interface only, and lets it be longer by a VLAN tag.
    if packet.largest > next.mtu {
        return Err(Counter::SlowTooBig);
    }
    let addresses = is_heard_of.then_some(way.addresses());
    packet.age(ctx, addresses).ok_or(Counter::SlowOther)?;
    Ok(if is_heard_of {
        // SAFETY: plain numbers.
        unsafe { bpf_redirect(way.interface, 0) as i32 }
    } else {
        to_neighbour(way)
    })
}

#[inline(always)]
fn link(interface: u32) -> Option<&'static FastLink> {
    FAST_LINKS.get(interface).filter(|link| link.mtu != 0)
}

#[inline(always)]
fn has_daemon() -> bool {
    RELAY.get(relay::OWN).is_some_and(|relay| {
        // SAFETY: no arguments, a plain number out.
        is_alive(relay, unsafe { bpf_ktime_get_ns() })
    })
}

/// Whether this host could answer: the kernel throws away what comes from addresses of its own, and, where `rp_filter` asks for that,
/// what has no way back or another one. Where it does, or there is a doubt, it is asked. (In IPv6 it does neither.)
#[inline(always)]
fn is_answered(ctx: &TcContext, way: &Way, link: &FastLink) -> bool {
    let is_doubtful = DOUBTS
        .get(0)
        .is_none_or(|doubts| doubts.about(way.source()));
    if link.asks == asks::SELDOM && !is_doubtful {
        return true;
    }
    let mut back = way.back();
    let found = look_up(ctx, &mut back);
    (found == answer::FOUND || found == answer::NO_NEIGHBOUR)
        && (link.asks != asks::SAME || back.interface == way.interface)
}

#[inline(always)]
fn look_up(ctx: &TcContext, way: &mut Way) -> i64 {
    // SAFETY: the kernel reads and writes one such struct.
    unsafe {
        bpf_fib_lookup(
            ctx.skb.skb.cast(),
            core::ptr::from_mut(way).cast(),
            size_of::<Way>() as i32,
            0,
        )
    }
}

/// Has the packet sent to the next hop of a way, whose hardware address the kernel writes.
#[inline(always)]
fn to_neighbour(way: &Way) -> i32 {
    // SAFETY: integers, for which zeros are a value; and whatever family the next hop has, its address is in the union.
    unsafe {
        let mut hop: NextHop = MaybeUninit::zeroed().assume_init();
        // A gateway of IPv4 routes may have an IPv6 address.
        hop.nh_family = u32::from(way.family);
        hop.__bindgen_anon_1.ipv6_nh = way.hop;
        bpf_redirect_neigh(way.interface, &raw mut hop, size_of::<NextHop>() as i32, 0) as i32
    }
}
