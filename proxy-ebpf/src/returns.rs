//! `tc` ingress: answers of servers on other hosts to the addresses of clients, which the relay has connected from.
//!
//! Such a packet is addressed to another host, and would be routed on to it. That it is for a socket here its addresses and ports
//! tell, and only they do: the client may have connections of its own with the server, through this host. So whatever has a socket of
//! the relay's gets a mark, for which there are a rule and a table in which every destination is local, and the kernel finds the
//! socket by itself. All else goes on as if we were not there, to the programs of others as well.

use aya_ebpf::{helpers::generated::bpf_sk_release, programs::TcContext};
use proxy_common::{BePort, OwnKey};

use crate::{
    headers::{Ports, load, v4, v6},
    maps::{RETURN_MARK, is_foreign},
    recipient::lookup,
};

const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: whoever comes next decides.
const NEXT: i32 = -1;
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
    let key = OwnKey {
        source: segment.source,
        dest: segment.dest,
        source_port: BePort(ports.source),
        dest_port: BePort(ports.dest),
    };
    let found = lookup(ctx, segment.family, &key);
    if found.is_null() {
        return Some(false);
    }
    // SAFETY: the socket is there until it is given back.
    unsafe {
        let state = (&raw const (*found).state).read_volatile();
        // What is left of a connection that has ended does not tell whose it was, but was of this host.
        let is_ours = state == TCP_TIME_WAIT || is_foreign(found);
        bpf_sk_release(found.cast());
        Some(is_ours)
    }
}
