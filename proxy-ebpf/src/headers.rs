//! The headers of TCP packets, and of ICMP errors that quote one: IPv4 with options, IPv6 with extension headers.
//!
//! Everything is read relative to the network header, so it is the same on Ethernet and on links without; a VLAN tag is no
//! part of the packet there (the kernel takes the outer one off before, `skb_vlan_untag()`). Bytes are copied out: headers
//! may lie in fragments of the buffer, which direct access does not see.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::bpf_hdr_start_off::BPF_HDR_START_NET,
    helpers::generated::bpf_skb_load_bytes_relative, programs::TcContext,
};
use proxy_common::{Addr, Family};

pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_HOPOPTS: u8 = 0;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_DSTOPTS: u8 = 60;
/// Extension headers that are looked past; a packet with more is left alone.
const MOST_EXTENSIONS: u32 = 8;

/// Bytes of an ICMP header, before what it quotes.
const ICMP_LEN: u32 = 8;

/// Of an ICMP error in IPv4: that something cannot be reached, takes too long, or is malformed. (Others are not listened to.)
const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// Of those in IPv6, where one says that a packet is too big.
const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

/// The beginning of an IPv4 header, without its options.
#[repr(C)]
pub struct Ipv4 {
    pub version_length: u8,
    pub service: u8,
    pub length: u16,
    pub id: u16,
    pub fragment: u16,
    pub lifetime: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub dest: u32,
}

/// An IPv6 header.
#[repr(C)]
pub struct Ipv6 {
    pub version_class_flow: u32,
    pub length: u16,
    pub next: u8,
    pub lifetime: u8,
    pub source: [u32; 4],
    pub dest: [u32; 4],
}

/// What matters of a TCP header, of which an ICMP error need not quote more.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    pub source: u16,
    pub dest: u16,
}

/// Where the flags are in a TCP header.
pub const FLAGS_AT: u32 = 13;

/// A TCP packet, or one that an ICMP error quotes.
pub struct Segment {
    pub family: u16,
    /// Where TCP begins.
    pub at: u32,
    pub source: Addr,
    pub dest: Addr,
    /// Whether it is one that this host has sent, as somebody sees it who cannot pass it on.
    pub is_quoted: bool,
}

/// Reads an IPv4 packet, which must be whole.
#[inline(always)]
pub fn v4(ctx: &TcContext) -> Option<Segment> {
    let (protocol, at, source, dest) = v4_at(ctx, 0, 0x3fff)?;
    if protocol == IPPROTO_ICMP {
        let [kind]: [u8; 1] = load(ctx, at)?;
        if !is_error(kind) {
            return None;
        }
        // Of a fragmented packet the first fragment has the ports.
        let (protocol, at, source, dest) = v4_at(ctx, at + ICMP_LEN, 0x1fff)?;
        return (protocol == IPPROTO_TCP).then_some(Segment {
            family: Family::V4,
            at,
            source,
            dest,
            is_quoted: true,
        });
    }
    (protocol == IPPROTO_TCP).then_some(Segment {
        family: Family::V4,
        at,
        source,
        dest,
        is_quoted: false,
    })
}

/// Protocol, where it begins, and addresses. None of the bits may be set of where the packet is a fragment: the offset, and that
/// there are more.
#[inline(always)]
fn v4_at(ctx: &TcContext, at: u32, fragment_bits: u16) -> Option<(u8, u32, Addr, Addr)> {
    let ip: Ipv4 = load(ctx, at)?;
    let length = u32::from(ip.version_length & 0xf) * 4;
    if u16::from_be(ip.fragment) & fragment_bits != 0 || length < size_of::<Ipv4>() as u32 {
        return None;
    }
    let [source, dest] = [ip.source, ip.dest].map(Addr::from_v4_word);
    Some((ip.protocol, at + length, source, dest))
}

/// As [`v4`], of an IPv6 packet.
#[inline(always)]
pub fn v6(ctx: &TcContext) -> Option<Segment> {
    let ip: Ipv6 = load(ctx, 0)?;
    let mut kind = ip.next;
    let mut at = size_of::<Ipv6>() as u32;
    let mut seen = 0;
    while seen <= MOST_EXTENSIONS {
        match kind {
            IPPROTO_TCP => {
                let [source, dest] = [ip.source, ip.dest].map(Addr::from_words);
                return Some(Segment {
                    family: Family::V6,
                    at,
                    source,
                    dest,
                    is_quoted: false,
                });
            }
            IPPROTO_ICMPV6 => return v6_quoted(ctx, at),
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                let [next, length, _, left]: [u8; 4] = load(ctx, at)?;
                // Where it goes is not yet where it is to get: to whom its ports belong is not known (RFC 8200, 4.4).
                if kind == IPPROTO_ROUTING && left != 0 {
                    return None;
                }
                kind = next;
                at += (u32::from(length) + 1) * 8;
            }
            // Fragments, and whatever hides the ports.
            _ => return None,
        }
        seen += 1;
    }
    None
}

/// What an ICMP error quotes. Sockets of this host send no extension headers.
#[inline(always)]
fn v6_quoted(ctx: &TcContext, at: u32) -> Option<Segment> {
    let [kind]: [u8; 1] = load(ctx, at)?;
    if !is_error_v6(kind) {
        return None;
    }
    let ip: Ipv6 = load(ctx, at + ICMP_LEN)?;
    let [source, dest] = [ip.source, ip.dest].map(Addr::from_words);
    (ip.next == IPPROTO_TCP).then_some(Segment {
        family: Family::V6,
        at: at + ICMP_LEN + size_of::<Ipv6>() as u32,
        source,
        dest,
        is_quoted: true,
    })
}

/// Copies bytes, counted from the beginning of the network header, into a value for which all bits are good.
#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the kernel writes all of it or returns an error; the types are integers.
    unsafe {
        let result = bpf_skb_load_bytes_relative(
            ctx.skb.skb.cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        );
        (result == 0).then(|| value.assume_init())
    }
}
