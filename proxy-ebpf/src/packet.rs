//! What a `tc` program needs to know of a TCP packet: IPv4 with options, IPv6 with extension headers.
//!
//! Everything is read relative to the network header, so it is the same on Ethernet and on links without; a VLAN tag is no
//! part of the packet there (the kernel takes the outer one off before, `skb_vlan_untag()`). Bytes are copied out: headers
//! may lie in fragments of the buffer, which direct access does not see.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_fib_lookup as FibLookup, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock,
        tcphdr,
    },
    helpers::generated::{bpf_fib_lookup, bpf_skb_load_bytes_relative, bpf_tcp_check_syncookie},
    programs::TcContext,
};
use proxy_common::{Addr, BePort, Family, OwnKey, Transit};

const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
/// The packet is for this host, as far as the link goes: promiscuous interfaces and bridge ports see others, too.
const PACKET_HOST: u32 = 0;
/// Of a VLAN tag, what tells the VLAN; 0 is a priority tag, which belongs to the interface itself.
const VLAN_ID: u32 = 0x0fff;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_DSTOPTS: u8 = 60;
/// Extension headers that are looked past; a packet with more is left alone.
const MOST_EXTENSIONS: u32 = 8;

/// Lengths of headers that the helper for SYN cookies wants: an IPv4 header may be followed by something.
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What `bpf_fib_lookup` says of a destination that is not forwarded to: an address of this host, or of everybody.
const NOT_FORWARDED: i64 = 4;
/// The interface does not forward at all.
const FORWARDING_DISABLED: i64 = 5;

/// A TCP packet.
pub struct Packet {
    pub family: u16,
    /// Of whom and to whom.
    pub key: OwnKey,
    interface: u32,
    /// Where TCP begins.
    at: u32,
    flags: u8,
}

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
struct Tcp {
    source: u16,
    dest: u16,
    sequence: u32,
    acknowledged: u32,
    length: u8,
    flags: u8,
}

impl Packet {
    /// `None` for what is no TCP, is for another host of the link or in a VLAN, which is an interface of its own, or cannot be
    /// read: fragments among them.
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Option<Self> {
        let skb = ctx.skb.skb;
        // SAFETY: the context is valid while the program runs; volatile, as the verifier wants single accesses.
        let (kind, tag, protocol, interface) = unsafe {
            (
                (&raw const (*skb).pkt_type).read_volatile(),
                tag(skb),
                (&raw const (*skb).protocol).read_volatile(),
                (&raw const (*skb).ifindex).read_volatile(),
            )
        };
        if kind != PACKET_HOST || tag & VLAN_ID != 0 {
            return None;
        }
        let (family, at, source, dest) = match protocol {
            ETH_P_IP => v4(ctx)?,
            ETH_P_IPV6 => v6(ctx)?,
            _ => return None,
        };
        let tcp: Tcp = load(ctx, at)?;
        Some(Self {
            family,
            at,
            key: OwnKey {
                source,
                dest,
                source_port: BePort(tcp.source),
                dest_port: BePort(tcp.dest),
            },
            interface,
            flags: tcp.flags,
        })
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    /// Whether it may be the end of a handshake by SYN cookie.
    #[inline(always)]
    pub const fn acknowledges(&self) -> bool {
        self.flags & (SYN | ACK | RST) == ACK
    }

    /// Whether it ends a handshake that a listener has begun by SYN cookie.
    #[inline(always)]
    pub fn completes_a_cookie(&self, ctx: &TcContext, listener: *mut bpf_sock) -> bool {
        let (Some(mut ip), Some(mut tcp)): (Option<[u8; IPV6_LEN]>, Option<[u8; TCP_LEN]>) =
            (load(ctx, 0), load(ctx, self.at))
        else {
            return false;
        };
        // SAFETY: the kernel reads so many bytes of each.
        let answer = unsafe {
            bpf_tcp_check_syncookie(
                listener.cast(),
                ip.as_mut_ptr().cast(),
                IPV6_LEN as u32,
                tcp.as_mut_ptr().cast::<tcphdr>(),
                TCP_LEN as u32,
            )
        };
        answer == 0
    }

    /// A number that is the same for all packets of the connection in this direction.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        let ports = u32::from(self.key.source_port.0) << 16 | u32::from(self.key.dest_port.0);
        let [a, b, c, d] = self.key.source.words();
        let [e, f, g, h] = self.key.dest.words();
        let mixed = (a ^ b ^ c ^ d).wrapping_mul(0x9e37_79b1)
            ^ (e ^ f ^ g ^ h).wrapping_mul(0x85eb_ca77)
            ^ ports.wrapping_mul(0xc2b2_ae3d);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x2c1b_3c6d);
        mixed ^ mixed >> 16
    }

    /// Whether the kernel would route it on: it is neither for this host nor for everybody, and the interface forwards.
    #[inline(always)]
    pub fn passes_through(&self, ctx: &TcContext) -> bool {
        // SAFETY: integers and unions of integers: zeros are a value.
        let mut route: FibLookup = unsafe { MaybeUninit::zeroed().assume_init() };
        route.l4_protocol = IPPROTO_TCP;
        route.sport = self.key.source_port.0;
        route.dport = self.key.dest_port.0;
        route.ifindex = self.interface;
        route.family = self.family as u8;
        let (source, dest) = (self.key.source.words(), self.key.dest.words());
        if self.family == Family::V4 {
            route.__bindgen_anon_3.ipv4_src = source[3];
            route.__bindgen_anon_4.ipv4_dst = dest[3];
        } else {
            route.__bindgen_anon_3.ipv6_src = source;
            route.__bindgen_anon_4.ipv6_dst = dest;
        }
        // SAFETY: the kernel reads and writes one such struct.
        let found = unsafe {
            bpf_fib_lookup(
                ctx.skb.skb.cast(),
                &raw mut route,
                size_of::<FibLookup>() as i32,
                0,
            )
        };
        // A destination that nobody knows the way to may still be reached through a proxy.
        !(found < 0 || found == NOT_FORWARDED || found == FORWARDING_DISABLED)
    }
}

impl Transit for Packet {
    #[inline(always)]
    fn dest(&self) -> Addr {
        self.key.dest
    }

    #[inline(always)]
    fn port(&self) -> BePort {
        self.key.dest_port
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        self.key.source
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.interface
    }
}

/// Family, where TCP begins, and addresses of an IPv4 packet, which must be TCP and whole.
#[inline(always)]
fn v4(ctx: &TcContext) -> Option<(u16, u32, Addr, Addr)> {
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
fn v6(ctx: &TcContext) -> Option<(u16, u32, Addr, Addr)> {
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

/// The outer VLAN tag, which the kernel has taken off; 0 without.
///
/// # Safety
/// The context must be that of the running program.
#[inline(always)]
unsafe fn tag(skb: *const __sk_buff) -> u32 {
    // SAFETY: the caller's word.
    unsafe {
        if (&raw const (*skb).vlan_present).read_volatile() == 0 {
            return 0;
        }
        (&raw const (*skb).vlan_tci).read_volatile()
    }
}

/// Copies bytes, counted from the beginning of the network header, into a value for which all bits are good.
#[inline(always)]
fn load<T>(ctx: &TcContext, offset: u32) -> Option<T> {
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
