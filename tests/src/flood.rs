//! SYNs that nobody will answer for, and frames around them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, sendto},
};
use socket2::{Domain, Protocol, Socket, Type};

const HEADERS: u8 = 40;

/// Sends so many SYNs from this network namespace, each from another address and port of 10.66.0.0/16.
pub fn syns(to: SocketAddrV4, count: u32) {
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(raw)).expect("a raw socket");
    for number in 0..count {
        let [low, high, ..] = number.to_le_bytes();
        let port = 1024 + u16::from(high) * 200 + u16::from(low) % 199;
        let source = SocketAddrV4::new(Ipv4Addr::new(10, 66, high, low.max(1)), port);
        let packet = syn(source, to);
        // A full queue loses some, as a network does.
        let _ = socket.send_to(&packet, &to.into());
    }
}

/// Sends a SYN in a frame to a hardware address, by an interface of this network namespace, with VLAN tags: type and number of
/// each, the outer one first.
pub fn tagged_syn(
    (interface, hardware): (&str, [u8; 6]),
    tags: &[(u16, u16)],
    from: SocketAddrV4,
    to: SocketAddrV4,
) {
    let mut packet = syn(from, to);
    packet[3] = HEADERS;
    let sum = checksum(&packet[..20], 0);
    packet[10..12].copy_from_slice(&sum);
    let ethernet = [hardware, [2, 0, 0, 0, 0, 1]].concat();
    let tags = tags
        .iter()
        .flat_map(|(kind, number)| [kind.to_be_bytes(), number.to_be_bytes()].concat());
    let frame: Vec<_> = ethernet
        .into_iter()
        .chain(tags)
        .chain([8, 0])
        .chain(packet)
        .collect();
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).expect("a socket for frames");
    let number = if_nametoindex(interface).expect("an interface");
    // SAFETY: integers and an array of them: zeros are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a family");
    address.sll_ifindex = number.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a small number");
    // SAFETY: an address of this family and length.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    let address = address.expect("an address of a link");
    sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty()).expect("a frame");
}

/// The kernel writes the checksum of IP, and its length.
fn syn(from: SocketAddrV4, to: SocketAddrV4) -> [u8; HEADERS as usize] {
    let mut packet = [0; HEADERS as usize];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&0x0102_0304_u32.to_be_bytes());
    // Five words, SYN, a window.
    packet[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    // The sum of TCP is of both addresses, too, the protocol, and its length.
    let sum = checksum(&packet[12..], 6 + 20);
    packet[36..38].copy_from_slice(&sum);
    packet
}

fn checksum(of: &[u8], more: u32) -> [u8; 2] {
    let words = of
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>() + more;
    let folded = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!(folded + (folded >> 16))).to_be_bytes();
    [high, low]
}
