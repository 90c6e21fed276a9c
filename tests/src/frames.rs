//! Packets of TCP byte for byte, in any form, and the frames that they are sent in.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, sendto},
};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

const TCP: u8 = 6;
/// Where the length of an IPv4 header is, in words, beside the version.
pub const VERSION_LENGTH: usize = 0;
/// Where the flags and the offset of a fragment are.
const FRAGMENT: usize = 6;
const ID: u8 = 77;

/// The interface of a host by which it reaches the sandbox.
#[derive(Debug)]
pub struct Wire<'a> {
    host: &'a Netns,
    name: &'a str,
    hardware: [u8; 6],
}

/// What comes between the header of IPv6 and that of TCP: the number of a header, and its bytes, of which the first is written when it
/// is known what follows.
pub type Extension = (u8, Vec<u8>);

impl<'a> Wire<'a> {
    /// Of the interface of this name, which the sandbox has as well.
    pub fn new(host: &'a Netns, name: &'a str, sandbox: &Netns) -> Self {
        Self {
            host,
            name,
            hardware: sandbox.hardware(name),
        }
    }

    /// Sends a packet.
    pub fn send(&self, packet: &[u8]) {
        let kind: [u8; 2] = if packet[0] >> 4 == 4 {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        self.host
            .within(|| send_frame(self.name, self.hardware, &[&kind, packet].concat()));
    }
}

/// Sends a frame by an interface of this network namespace: to a hardware address, with its type and what follows.
pub fn send_frame(interface: &str, hardware: [u8; 6], rest: &[u8]) {
    let frame = [&hardware[..], &[2, 0, 0, 0, 0, 1], rest].concat();
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

/// The header of a SYN, with options that do nothing, so many bytes in all.
pub fn syn(from: SocketAddr, to: SocketAddr, length: u8) -> Vec<u8> {
    let mut tcp = vec![1; usize::from(length)];
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&0x0102_0304_u32.to_be_bytes());
    // Its length in words, SYN, a window. The second byte of what is acknowledged looks like these flags.
    tcp[8..20].copy_from_slice(&[0, 2, 0, 0, length / 4 * 16, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let addresses = [from.ip(), to.ip()].map(octets).concat();
    let sum = checksum(
        &[&addresses[..], &tcp].concat(),
        u32::from(TCP) + u32::from(length),
    );
    tcp[16..18].copy_from_slice(&sum);
    tcp
}

/// An IPv4 packet, whole.
pub fn v4(from: IpAddr, to: IpAddr, content: &[u8]) -> Vec<u8> {
    part_of_v4(from, to, content, 0, false)
}

/// A fragment of an IPv4 packet: where its content begins, in words of 8 bytes, and whether more follow.
pub fn part_of_v4(from: IpAddr, to: IpAddr, content: &[u8], at: u8, has_more: bool) -> Vec<u8> {
    let mut ip = vec![0; 20];
    ip[VERSION_LENGTH] = 0x45;
    ip[3] = 20 + u8::try_from(content.len()).expect("a short packet");
    ip[5] = ID;
    ip[FRAGMENT] = u8::from(has_more) << 5;
    ip[FRAGMENT + 1] = at;
    ip[8] = 64;
    ip[9] = TCP;
    ip[12..16].copy_from_slice(&octets(from));
    ip[16..].copy_from_slice(&octets(to));
    sum_up(&mut ip);
    ip.extend(content);
    ip
}

/// Writes the checksum of an IPv4 header.
pub fn sum_up(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let sum = checksum(&ip[..20], 0);
    ip[10..12].copy_from_slice(&sum);
}

/// An IPv6 packet, with headers in between.
pub fn v6(from: IpAddr, to: IpAddr, extensions: &[Extension], content: &[u8]) -> Vec<u8> {
    let kinds = extensions.iter().map(|(kind, _)| *kind);
    let mut kinds = kinds.chain([TCP]);
    let first = kinds.next().expect("TCP at least");
    let headers = extensions.iter().zip(kinds).flat_map(|((_, bytes), next)| {
        let mut bytes = bytes.clone();
        bytes[0] = next;
        bytes
    });
    let content: Vec<_> = headers.chain(content.iter().copied()).collect();
    let mut ip = vec![0; 40];
    ip[0] = 0x60;
    ip[5] = u8::try_from(content.len()).expect("a short packet");
    ip[6] = first;
    ip[7] = 64;
    ip[8..24].copy_from_slice(&octets(from));
    ip[24..].copy_from_slice(&octets(to));
    ip.extend(content);
    ip
}

/// Options for the destination: padding.
pub fn padding() -> Extension {
    (60, vec![0, 0, 1, 4, 0, 0, 0, 0])
}

/// A routing header, of an experimental kind, that leads to so many more hosts.
pub fn routing(left: u8) -> Extension {
    (43, vec![0, 0, 253, left, 0, 0, 0, 0])
}

/// What makes a packet a fragment: where its content begins, in words of 8 bytes, and whether more follow.
pub fn part(at: u8, has_more: bool) -> Extension {
    (44, vec![0, 0, 0, at << 3 | u8::from(has_more), 0, 0, 0, ID])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
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
