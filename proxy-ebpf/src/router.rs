//! `tc` ingress of the interfaces of the fast path: what passes from one of them to another is sent on from here, without what the
//! kernel does between receiving and sending. Netfilter and `IPsec` policies are part of that.
//!
//! It runs behind the other programs of ours, and takes only what is plain: a packet of IP without options, whole, unmarked and
//! in no VLAN, from an address that would be answered by this way where `rp_filter` asks for that, to an address whose neighbour is
//! known, by an interface that it fits through. The rest is the kernel's as ever: it answers, fragments, looks for neighbours,
//! drops, and delivers.
//!
//! What the kernel would do for the same packet stays done: the route is the one that it would take (`bpf_fib_lookup`, with
//! routing rules), the lifetime is counted down, the neighbour is kept fresh and the interface's queue is passed through
//! (`bpf_redirect_neigh`). The checksum of IPv4 is changed, not checked: a wrong one stays wrong, and the next hop throws it away.
//! A priority by type of service is not given.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::bpf_redir_neigh as NextHop,
    helpers::generated::{
        bpf_fib_lookup, bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh,
    },
    programs::TcContext,
};
use proxy_common::{Counter, Family, FastLink, HOPS, Hop, asks, relay};

use crate::{
    globals::routes_without_daemon,
    maps::{DOUBTS, FAST_LINKS, NEXT_HOPS, RELAY, count},
    plain::{Plain, Way, plain},
    relay::is_alive,
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides, in the end the kernel.
const NEXT: i32 = -1;

/// Jiffies of a moment, as a power of two: 128 are from an eighth of a second to a bit more than one.
const MOMENT: u32 = 7;

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
    // A filter stays when the daemon is killed; what it does must not.
    if !routes_without_daemon() && !has_daemon() {
        return Err(Counter::SlowOther);
    }
    let packet = plain(ctx)?;
    let Plain { mut way, .. } = packet;
    let came_by = way.interface;
    let link = link(came_by).ok_or(Counter::SlowOther)?;
    if packet.family == Family::V4 && !is_answered(ctx, &way, link) {
        return Err(Counter::SlowSource);
    }
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
    if way.interface == came_by {
        // The sender should know a better way, which the kernel tells it.
        return Err(Counter::SlowElsewhere);
    }
    let next = self::link(way.interface).ok_or(Counter::SlowElsewhere)?;
    // Before 5.12 the look-up compares with the interface only, and lets it be longer by a VLAN tag.
    if packet.largest > next.mtu {
        return Err(Counter::SlowTooBig);
    }
    let addresses = is_heard_of(&way).then_some(way.addresses());
    packet.age(ctx, addresses).ok_or(Counter::SlowOther)?;
    Ok(if addresses.is_some() {
        // SAFETY: plain numbers.
        unsafe { bpf_redirect(way.interface, 0) as i32 }
    } else {
        send(&way)
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

/// Whether the kernel has sent something to the next hop of a way not long ago, on this core. If not it should send this: for
/// neighbours that it sends to it makes sure that they are still there, which a redirect by hardware address does not.
#[inline(always)]
fn is_heard_of(way: &Way) -> bool {
    let [a, b, c, d] = way.hop;
    let hash = (a ^ b ^ c ^ d ^ way.interface).wrapping_mul(0x9e37_79b1) >> 24;
    let Some(hop) = NEXT_HOPS.get_ptr_mut(hash % HOPS as u32) else {
        return false;
    };
    // SAFETY: no arguments, a plain number out; and nobody else has the entry of this core while the program runs.
    let (moment, hop) = unsafe { ((bpf_jiffies64() >> MOMENT) as u32, &mut *hop) };
    if hop.address == way.hop && hop.interface == way.interface && hop.moment == moment {
        return true;
    }
    *hop = Hop {
        address: way.hop,
        interface: way.interface,
        moment,
    };
    false
}

/// Has the packet sent to the next hop of a way.
#[inline(always)]
fn send(way: &Way) -> i32 {
    // SAFETY: integers, for which zeros are a value; and whatever family the next hop has, its address is in the union.
    unsafe {
        let mut hop: NextHop = MaybeUninit::zeroed().assume_init();
        // A gateway of IPv4 routes may have an IPv6 address.
        hop.nh_family = u32::from(way.family);
        hop.__bindgen_anon_1.ipv6_nh = way.hop;
        bpf_redirect_neigh(way.interface, &raw mut hop, size_of::<NextHop>() as i32, 0) as i32
    }
}
