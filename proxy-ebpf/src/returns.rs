//! `tc` ingress: answers of servers on other hosts to the addresses of clients, which the relay has connected from.
//!
//! Such a packet is addressed to another host, and would be routed on to it. That it is for a socket here its addresses and ports
//! tell, and only they do: the client may have connections of its own with the server, through this host. So whatever has a socket of
//! the relay's gets a mark, for which there are a rule and a table in which every destination is local, and the kernel finds the
//! socket by itself. All else goes on as if we were not there, to the programs of others as well.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use proxy_common::Family;

use crate::{
    headers::{Ports, load, v4, v6},
    maps::{RETURN_MARK, is_foreign},
};

const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides.
const NEXT: i32 = -1;
/// In the network namespace of the interface (`BPF_F_CURRENT_NETNS`).
const HERE: u64 = u64::MAX;
const TCP_TIME_WAIT: u32 = 6;

/// Marks a packet that is for a socket of the relay's.
#[inline(always)]
pub fn ingress(ctx: &TcContext) -> i32 {
    if is_for_relay(ctx) == Some(true)
        && let Some(mark) = RETURN_MARK.get(0)
        && *mark != 0
    {
        ctx.set_mark(*mark);
    }
    NEXT
}

/// `None` for what is no TCP packet, or cannot be read: fragments among them.
#[inline(always)]
fn is_for_relay(ctx: &TcContext) -> Option<bool> {
    // SAFETY: the context is valid while the program runs; volatile, as the verifier wants single accesses.
    let protocol = unsafe { (&raw const (*ctx.skb.skb).protocol).read_volatile() };
    let segment = match protocol {
        ETH_P_IP => v4(ctx)?,
        ETH_P_IPV6 => v6(ctx)?,
        _ => return None,
    };
    if segment.is_quoted {
        return None;
    }
    let ports: Ports = load(ctx, segment.at)?;
    // SAFETY: integers, for which zeros are a value.
    let mut tuple: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
    let (source, dest) = (segment.source.words(), segment.dest.words());
    let length = if segment.family == Family::V4 {
        // SAFETY: integers again; either half is one.
        let v4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        v4.saddr = source[3];
        v4.daddr = dest[3];
        v4.sport = ports.source;
        v4.dport = ports.dest;
        size_of_val(v4)
    } else {
        // SAFETY: as above.
        let v6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        v6.saddr = source;
        v6.daddr = dest;
        v6.sport = ports.source;
        v6.dport = ports.dest;
        size_of_val(v6)
    };
    // SAFETY: the kernel reads `length` bytes of the tuple; the reference that a look-up takes is given back.
    unsafe {
        let found = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), &raw mut tuple, length as u32, HERE, 0);
        if found.is_null() {
            return Some(false);
        }
        let state = (&raw const (*found).state).read_volatile();
        // What is left of a connection that has ended does not tell whose it was, but was of this host.
        let is_ours = state == TCP_TIME_WAIT || is_foreign(found);
        bpf_sk_release(found.cast());
        Some(is_ours)
    }
}
