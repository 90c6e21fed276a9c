//! Packets that a router has nothing to think about: what the fast path takes, and what it does to them.
//!
//! Headers are accessed directly, behind that of Ethernet. What lies deeper in the buffer than direct access reaches is not plain.

use aya_ebpf::{helpers::generated::bpf_csum_update, programs::TcContext};
use proxy_common::{Counter, Family};

use crate::{
    headers::{IPPROTO_ICMPV6, IPPROTO_TCP, Ipv4, Ipv6, Ports},
    packet::{ETH_P_IP, ETH_P_IPV6, PACKET_HOST},
    way::{NO_HARDWARE, Way},
};

const IPPROTO_UDP: u8 = 17;
pub const ETHERNET_LEN: usize = 14;
/// A shorter frame is filled up to this length.
const SHORTEST_FRAME: u32 = 60;
/// An IPv4 header without options.
pub const VERSION_LENGTH: u8 = 0x45;
/// Of the flags and the offset: that more fragments follow, or some come before.
pub const FRAGMENT: u16 = 0x3fff_u16.to_be();
const UDP_LEN: u32 = 8;
/// A hop limit that no router has touched: neighbours use it among themselves.
const UNTOUCHED: u8 = 255;

/// A packet of which this much is known.
pub struct Plain {
    pub family: u16,
    /// Bytes of the largest packet that it is sent as, with its IP header.
    pub largest: u32,
    /// What to look up for the way that it goes.
    pub way: Way,
}

/// Reads a packet, or says why it is not plain.
#[inline(always)]
pub fn plain(ctx: &TcContext) -> Result<Plain, Counter> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs; volatile, as the verifier wants single accesses.
    let (came_by, kind, tagged, mark, protocol) = unsafe {
        (
            (&raw const (*skb).ifindex).read_volatile(),
            (&raw const (*skb).pkt_type).read_volatile(),
            (&raw const (*skb).vlan_present).read_volatile(),
            (&raw const (*skb).mark).read_volatile(),
            (&raw const (*skb).protocol).read_volatile(),
        )
    };
    // A mark may stand for a socket here, or for a way: before 6.10 the look-up does not know of it.
    if kind != PACKET_HOST || tagged != 0 || mark != 0 {
        return Err(Counter::SlowOther);
    }
    match protocol {
        ETH_P_IP => v4(ctx, came_by),
        ETH_P_IPV6 => v6(ctx, came_by),
        _ => Err(Counter::SlowOther),
    }
}

#[inline(always)]
fn v4(ctx: &TcContext, came_by: u32) -> Result<Plain, Counter> {
    let ip = header::<Ipv4>(ctx, ETHERNET_LEN).ok_or(Counter::SlowOther)?;
    if ip.version_length != VERSION_LENGTH || ip.fragment & FRAGMENT != 0 {
        return Err(Counter::SlowOptions);
    }
    if ip.lifetime <= 1 {
        return Err(Counter::SlowExpiring);
    }
    // Zero, loopback, multicast and beyond: each is something special to the kernel.
    let is_plain = |address: u32| {
        let first = u32::from_be(address) >> 24;
        first != 0 && first != 127 && first < 224
    };
    if !is_plain(ip.source) || !is_plain(ip.dest) {
        return Err(Counter::SlowNotForwarded);
    }
    let (at, length) = (size_of::<Ipv4>(), u32::from(u16::from_be(ip.length)));
    let largest = largest(ctx, ip.protocol, at, length)?;
    Ok(Plain {
        family: Family::V4,
        largest,
        way: Way {
            family: Family::V4 as u8,
            protocol: ip.protocol,
            ports: ports(ctx, ip.protocol, at)?,
            length: largest as u16,
            interface: came_by,
            class: u32::from_ne_bytes([ip.service, 0, 0, 0]),
            source: [ip.source, 0, 0, 0],
            hop: [ip.dest, 0, 0, 0],
            table: 0,
            hardware: NO_HARDWARE,
        },
    })
}

#[inline(always)]
fn v6(ctx: &TcContext, came_by: u32) -> Result<Plain, Counter> {
    let ip = header::<Ipv6>(ctx, ETHERNET_LEN).ok_or(Counter::SlowOther)?;
    if u32::from_be(ip.version_class_flow) >> 28 != 6 {
        return Err(Counter::SlowOther);
    }
    // Options for each hop, routing, fragments, authentication, options for the destination.
    if matches!(ip.next, 0 | 43 | 44 | 51 | 60) {
        return Err(Counter::SlowOptions);
    }
    if ip.lifetime <= 1 {
        return Err(Counter::SlowExpiring);
    }
    // Unspecified, loopback and mapped; of the link; multicast.
    let is_plain = |address: &[u32; 4]| {
        let first = u32::from_be(address[0]);
        first != 0 && first >> 22 != 0xfe80 >> 6 && first >> 24 != 0xff
    };
    if !is_plain(&ip.source) || !is_plain(&ip.dest) {
        return Err(Counter::SlowNotForwarded);
    }
    // This host may answer for others (`proxy_ndp`).
    if ip.next == IPPROTO_ICMPV6 && ip.lifetime == UNTOUCHED {
        return Err(Counter::SlowOther);
    }
    let at = size_of::<Ipv6>();
    let length = at as u32 + u32::from(u16::from_be(ip.length));
    let largest = largest(ctx, ip.next, at, length)?;
    Ok(Plain {
        family: Family::V6,
        largest,
        way: Way {
            family: Family::V6 as u8,
            protocol: ip.next,
            ports: ports(ctx, ip.next, at)?,
            length: largest as u16,
            interface: came_by,
            class: ip.version_class_flow & 0x0fff_ffff_u32.to_be(),
            source: ip.source,
            hop: ip.dest,
            table: 0,
            hardware: NO_HARDWARE,
        },
    })
}

/// Routing rules, and the choice among several ways, may depend on them.
#[inline(always)]
fn ports(ctx: &TcContext, protocol: u8, at: usize) -> Result<Ports, Counter> {
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return Ok(Ports { source: 0, dest: 0 });
    }
    header::<Ports>(ctx, ETHERNET_LEN + at)
        .copied()
        .ok_or(Counter::SlowOther)
}

/// How long a packet is, or each part of one that is cut when it is sent (GSO). `length` is what its header says.
#[inline(always)]
fn largest(ctx: &TcContext, protocol: u8, at: usize, length: u32) -> Result<u32, Counter> {
    let skb = ctx.skb.skb;
    // SAFETY: as above.
    let (whole, part) = unsafe {
        (
            (&raw const (*skb).len).read_volatile(),
            (&raw const (*skb).gso_size).read_volatile(),
        )
    };
    let end = length + ETHERNET_LEN as u32;
    // Cut off, or with something behind that the kernel would take off.
    if whole < end || whole > end && whole > SHORTEST_FRAME {
        return Err(Counter::SlowOther);
    }
    if part == 0 {
        return Ok(length);
    }
    let transport = match protocol {
        IPPROTO_TCP => {
            let offset = header::<u8>(ctx, ETHERNET_LEN + at + 12).ok_or(Counter::SlowOther)?;
            u32::from(*offset >> 4) * 4
        }
        IPPROTO_UDP => UDP_LEN,
        _ => return Err(Counter::SlowTooBig),
    };
    Ok(at as u32 + transport + part)
}

impl Plain {
    /// Counts its lifetime down, and writes the addresses of Ethernet, to and from, where they are given.
    #[inline(always)]
    pub fn age(&self, ctx: &TcContext, addresses: Option<[[u16; 3]; 2]>) -> Option<()> {
        let length = if self.family == Family::V4 {
            size_of::<Ipv4>()
        } else {
            size_of::<Ipv6>()
        };
        let begin = ctx.data();
        if begin + ETHERNET_LEN + length > ctx.data_end() {
            return None;
        }
        // SAFETY: the headers are there, nobody else has them while the program runs, and it may access words that are not aligned.
        unsafe {
            if let Some(addresses) = addresses {
                (begin as *mut [[u16; 3]; 2]).write_unaligned(addresses);
            }
            if self.family == Family::V4 {
                let ip = (begin + ETHERNET_LEN) as *mut Ipv4;
                (*ip).lifetime = (*ip).lifetime.wrapping_sub(1);
                // The word with the lifetime has become smaller by this, and the sum of one's complements larger (RFC 1141).
                let sum = u32::from((*ip).checksum) + u32::from(0x0100_u16.to_be());
                (*ip).checksum = (sum + u32::from(sum >= 0xffff)) as u16;
            } else {
                let ip = (begin + ETHERNET_LEN) as *mut Ipv6;
                (*ip).lifetime = (*ip).lifetime.wrapping_sub(1);
                // An interface may have told the sum of all, of which a part has become smaller by one. (IPv4 has made up for it.)
                bpf_csum_update(ctx.skb.skb.cast(), u32::from(!1_u16.to_be()));
            }
        }
        Some(())
    }
}

/// A header that begins so many bytes behind the beginning of the frame.
#[inline(always)]
pub fn header<T>(ctx: &TcContext, at: usize) -> Option<&T> {
    // SAFETY: the bytes are there, of which each pattern is a value of the integers that headers consist of.
    place(ctx, at).and_then(|place: *mut T| unsafe { place.as_ref() })
}

/// Where it is, if all of it is within reach.
#[inline(always)]
fn place<T>(ctx: &TcContext, at: usize) -> Option<*mut T> {
    let begin = ctx.data() + at;
    (begin + size_of::<T>() <= ctx.data_end()).then_some(begin as *mut T)
}
