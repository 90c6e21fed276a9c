//! The headers of TCP packets: IPv4 with options, IPv6 with extension headers.
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
const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_DSTOPTS: u8 = 60;
/// Extension headers that are looked past; a packet with more is left alone.
const MOST_EXTENSIONS: u32 = 8;

/// The beginning of an IPv4 header, without its options.
#[repr(C)]
struct Ipv4 {
    version_length: u8,
    service: u8,
    length: u16,
    id: u16,
    fragment: u16,
    lifetime: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    dest: u32,
}

/// An IPv6 header.
#[repr(C)]
struct Ipv6 {
    version_class_flow: u32,
    length: u16,
    next: u8,
    lifetime: u8,
    source: [u32; 4],
    dest: [u32; 4],
}

/// What matters of a TCP header.
#[repr(C)]
pub struct Tcp {
    pub source: u16,
    pub dest: u16,
    sequence: u32,
    acknowledged: u32,
    length: u8,
    pub flags: u8,
}

/// Family, where TCP begins, and addresses of an IPv4 packet, which must be TCP and whole.
#[inline(always)]
pub fn v4(ctx: &TcContext) -> Option<(u16, u32, Addr, Addr)> {
    let ip: Ipv4 = load(ctx, 0)?;
    // More fragments, or an offset: all but "don't fragment" and the reserved bit.
    let is_fragment = u16::from_be(ip.fragment) & 0x3fff != 0;
    let length = u32::from(ip.version_length & 0xf) * 4;
    if is_fragment || ip.protocol != IPPROTO_TCP || length < size_of::<Ipv4>() as u32 {
        return None;
    }
    let [source, dest] = [ip.source, ip.dest].map(Addr::from_v4_word);
    Some((Family::V4, length, source, dest))
}

/// As [`v4`], of an IPv6 packet.
#[inline(always)]
pub fn v6(ctx: &TcContext) -> Option<(u16, u32, Addr, Addr)> {
    let ip: Ipv6 = load(ctx, 0)?;
    let mut kind = ip.next;
    let mut at = size_of::<Ipv6>() as u32;
    let mut seen = 0;
    while seen < MOST_EXTENSIONS {
        match kind {
            IPPROTO_TCP => {
                let [source, dest] = [ip.source, ip.dest].map(Addr::from_words);
                return Some((Family::V6, at, source, dest));
            }
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                let [next, length]: [u8; 2] = load(ctx, at)?;
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
