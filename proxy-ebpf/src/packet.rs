//! What a `tc` program needs to know of a TCP packet.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup as FibLookup, bpf_sock, tcphdr},
    helpers::generated::{bpf_fib_lookup, bpf_tcp_check_syncookie},
    programs::TcContext,
};
use proxy_common::{Addr, BePort, Family, OwnKey, Transit};

use crate::headers::{FLAGS_AT, IPPROTO_TCP, Ports, load, v4, v6};

pub const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
pub const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
/// The packet is for this host, as far as the link goes: promiscuous interfaces and bridge ports see others, too.
pub const PACKET_HOST: u32 = 0;
/// Of a VLAN tag, what tells the VLAN; 0 is a priority tag, which belongs to the interface itself.
const VLAN_ID: u32 = 0x0fff;

/// Lengths of headers that the helper for SYN cookies wants: an IPv4 header may be followed by something.
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What `bpf_fib_lookup` says of a destination that is not forwarded to: an address of this host, or of everybody, or without a route.
const NOT_FORWARDED: i64 = 4;
/// The interface does not forward at all.
const FORWARDING_DISABLED: i64 = 5;

/// A TCP packet, or an ICMP error about one that this host has sent.
pub struct Packet {
    pub family: u16,
    /// Of whom and to whom; of an error, those of the packets that it is an answer to.
    pub key: OwnKey,
    /// Whether it is an error.
    pub is_error: bool,
    interface: u32,
    /// Where TCP begins.
    at: u32,
    flags: u8,
}

impl Packet {
    /// `None` for what is neither, is for another host of the link or in a VLAN, which is an interface of its own, or cannot be
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
        let segment = match protocol {
            ETH_P_IP => v4(ctx)?,
            ETH_P_IPV6 => v6(ctx)?,
            _ => return None,
        };
        let ports: Ports = load(ctx, segment.at)?;
        let key = if segment.is_quoted {
            OwnKey {
                source: segment.dest,
                dest: segment.source,
                source_port: BePort(ports.dest),
                dest_port: BePort(ports.source),
            }
        } else {
            OwnKey {
                source: segment.source,
                dest: segment.dest,
                source_port: BePort(ports.source),
                dest_port: BePort(ports.dest),
            }
        };
        let [flags] = if segment.is_quoted {
            [0]
        } else {
            load(ctx, segment.at + FLAGS_AT)?
        };
        Some(Self {
            family: segment.family,
            at: segment.at,
            key,
            is_error: segment.is_quoted,
            interface,
            flags,
        })
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        opens(self.flags)
    }

    /// Whether some host may take it for the beginning of a connection.
    #[inline(always)]
    pub const fn may_open(&self) -> bool {
        may_open(self.flags)
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

    /// Whether the kernel would route it on: it is neither for this host nor for everybody, and the interface forwards. A route of the
    /// kind `blackhole`, `unreachable` or `prohibit` is one, so what has no other way can be taken, for a proxy to reach. Without any
    /// route the kernel answers as for its own addresses, and nothing is taken.
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

/// Whether a packet with these flags opens a connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether some host may take a packet with these flags for the beginning of a connection. Linux wants no FIN beside the SYN; others do
/// not mind (RFC 1644).
#[inline(always)]
pub const fn may_open(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
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
