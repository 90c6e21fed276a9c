//! SYNs that nobody will answer for, and frames around them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::frames::{self, send_frame};

/// Bytes of a TCP header without options.
const TCP_LEN: u8 = 20;

/// Sends so many SYNs from this network namespace, each from another address and port of 10.66.0.0/16, or of `fd66::/96`.
pub fn syns(to: SocketAddr, count: u32) {
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(raw)).expect("a raw socket");
    for number in 0..count {
        let [low, high, ..] = number.to_le_bytes();
        let port = 1024 + u16::from(high) * 200 + u16::from(low) % 199;
        let source: IpAddr = if to.is_ipv4() {
            Ipv4Addr::new(10, 66, high, low.max(1)).into()
        } else {
            let (high, low) = (u16::from(high), u16::from(low.max(1)));
            Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, high, low).into()
        };
        let packet = syn(SocketAddr::new(source, port), to);
        // The address of a raw socket has no port. A full queue loses some packets, as a network does.
        let _ = socket.send_to(&packet, &SocketAddr::new(to.ip(), 0).into());
    }
}

/// Sends a SYN in a frame to a hardware address, by an interface of this network namespace, with VLAN tags: type and number of
/// each, the outer one first.
pub fn tagged_syn(
    (interface, hardware): (&str, [u8; 6]),
    tags: &[(u16, u16)],
    from: SocketAddr,
    to: SocketAddr,
) {
    let tags = tags
        .iter()
        .flat_map(|(kind, number)| [kind.to_be_bytes(), number.to_be_bytes()].concat());
    let rest: Vec<_> = tags.chain([8, 0]).chain(syn(from, to)).collect();
    send_frame(interface, hardware, &rest);
}

fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let tcp = frames::syn(from, to, TCP_LEN);
    if from.is_ipv4() {
        frames::v4(from.ip(), to.ip(), &tcp)
    } else {
        frames::v6(from.ip(), to.ip(), &[], &tcp)
    }
}
