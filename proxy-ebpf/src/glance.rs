//! A first look at a packet that passes through, for most of which it is the only one: as few instructions as it takes to know that
//! it is nothing to us, no call of the kernel among them.
//!
//! It sees headers where they mostly are, behind that of Ethernet or at the beginning, within direct reach, of IPv4 without options or of
//! IPv6 without extensions. Whatever is otherwise is worth another look, and so are what opens a connection, errors that may be about
//! one of ours, and what leads to a trace.

use aya_ebpf::programs::TcContext;
use proxy_common::{Addr, beginning};

use crate::{
    headers::{
        IPPROTO_DSTOPTS, IPPROTO_HOPOPTS, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_ROUTING,
        IPPROTO_TCP, Ipv4, Ipv6, Ports,
    },
    maps::BEGINNINGS,
    packet::{ETH_P_IP, ETH_P_IPV6, may_open},
    plain::{ETHERNET_LEN, FRAGMENT, VERSION_LENGTH, header},
    traces,
};

/// An IP header, and what matters of one of TCP.
#[repr(C)]
struct Headers<Ip> {
    ip: Ip,
    ports: Ports,
    numbers: [u32; 2],
    offset: u8,
    flags: u8,
}

/// Whether a packet is worth another look.
#[inline(always)]
pub fn is_worth_a_look(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs; volatile, as the verifier wants single accesses.
    let (interface, protocol) = unsafe {
        (
            (&raw const (*skb).ifindex).read_volatile(),
            (&raw const (*skb).protocol).read_volatile(),
        )
    };
    let at = match BEGINNINGS.get(interface).copied() {
        Some(beginning::ETHERNET) => ETHERNET_LEN,
        Some(beginning::IP) => 0,
        _ => return true,
    };
    match protocol {
        ETH_P_IP => v4(ctx, at),
        ETH_P_IPV6 => v6(ctx, at),
        _ => false,
    }
}

#[inline(always)]
fn v4(ctx: &TcContext, at: usize) -> bool {
    let Some(Headers {
        ip, ports, flags, ..
    }) = header::<Headers<Ipv4>>(ctx, at)
    else {
        return true;
    };
    match ip.protocol {
        IPPROTO_TCP => {
            ip.version_length != VERSION_LENGTH
                || ip.fragment & FRAGMENT != 0
                || may_open(*flags)
                || {
                    let hosts = [ip.source, ip.dest].map(Addr::from_v4_word);
                    traces::lead_on(hosts, [ports.source, ports.dest])
                }
        }
        IPPROTO_ICMP => true,
        _ => false,
    }
}

#[inline(always)]
fn v6(ctx: &TcContext, at: usize) -> bool {
    let Some(Headers {
        ip, ports, flags, ..
    }) = header::<Headers<Ipv6>>(ctx, at)
    else {
        return true;
    };
    match ip.next {
        IPPROTO_TCP => {
            may_open(*flags) || {
                let hosts = [ip.source, ip.dest].map(Addr::from_words);
                traces::lead_on(hosts, [ports.source, ports.dest])
            }
        }
        IPPROTO_ICMPV6 | IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => true,
        _ => false,
    }
}
