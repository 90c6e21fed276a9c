//! Datagrams that pass through a sandbox, and what becomes of them.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use socket2::SockRef;

use crate::{
    hosts::{self, Hosts},
    netns::Netns,
};

/// Datagrams from one host to another, through the sandbox.
#[derive(Debug)]
pub struct Datagrams {
    /// Who sends.
    pub client: UdpSocket,
    /// Who gets them.
    pub server: UdpSocket,
}

impl Datagrams {
    /// Of these addresses of a client and a server.
    pub fn between(hosts: &Hosts, client: IpAddr, server: IpAddr) -> Self {
        let open = |netns: &Netns, address| {
            netns.within(|| UdpSocket::bind((address, 0)).expect("a datagram"))
        };
        let (client, server) = (open(hosts.client(0), client), open(hosts.server(0), server));
        client
            .connect(server.local_addr().expect("a datagram"))
            .expect("a datagram");
        for socket in [&client, &server] {
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("a datagram");
        }
        Self { client, server }
    }

    /// Of the two hosts themselves, in each family.
    pub fn both(hosts: &Hosts) -> [Self; 2] {
        [0, 1]
            .map(|family| Self::between(hosts, hosts::client(0)[family], hosts::server(0)[family]))
    }

    /// Whether they are of IPv4.
    pub fn is_v4(&self) -> bool {
        self.client.local_addr().expect("a datagram").is_ipv4()
    }

    /// Has them live for so many hops.
    pub fn set_lifetime(&self, lifetime: u32) {
        let socket = SockRef::from(&self.client);
        if self.is_v4() {
            socket.set_ttl_v4(lifetime).expect("a datagram");
        } else {
            socket.set_unicast_hops_v6(lifetime).expect("a datagram");
        }
    }

    /// Has the client hear of errors.
    pub fn hear_errors(&self) {
        let (level, option) = if self.is_v4() {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        };
        set(&self.client, level, option, &1_i32.to_ne_bytes());
    }

    /// Sends one.
    pub fn send(&self, length: usize) {
        self.client.send(&vec![7; length]).expect("a datagram");
    }

    /// Sends one, which arrives.
    pub fn assert_arrives(&self, length: usize) {
        self.send(length);
        let mut buffer = vec![0; 1 << 16];
        assert_eq!(self.server.recv(&mut buffer).expect("a datagram"), length);
    }

    /// What the client hears.
    pub fn error(&self) -> Errno {
        let error = self.client.recv(&mut [0; 16]).expect_err("an error");
        Errno::from_raw(error.raw_os_error().expect("a datagram"))
    }

    /// The lifetime that a datagram arrives with.
    pub fn lifetime(&self) -> i32 {
        let (level, option, kind) = if self.is_v4() {
            (libc::IPPROTO_IP, libc::IP_RECVTTL, libc::IP_TTL)
        } else {
            (
                libc::IPPROTO_IPV6,
                libc::IPV6_RECVHOPLIMIT,
                libc::IPV6_HOPLIMIT,
            )
        };
        set(&self.server, level, option, &1_i32.to_ne_bytes());
        self.send(10);
        control(&self.server, level, kind).expect("a datagram")
    }
}

/// Sets an option of a socket.
pub fn set(socket: &UdpSocket, level: i32, option: i32, value: &[u8]) {
    // SAFETY: the socket is open, and the kernel reads so many bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            libc::socklen_t::try_from(value.len()).expect("a datagram"),
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The integer that a datagram brings with it.
fn control(socket: &UdpSocket, level: i32, kind: i32) -> Option<i32> {
    let mut bytes = [0; 64];
    let mut room = nix::cmsg_space!(i32);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut room),
        MsgFlags::empty(),
    )
    .expect("a datagram");
    message
        .cmsgs()
        .expect("a datagram")
        .find_map(|found| match (level, kind, found) {
            (libc::IPPROTO_IP, libc::IP_TTL, ControlMessageOwned::Ipv4Ttl(lifetime))
            | (
                libc::IPPROTO_IPV6,
                libc::IPV6_HOPLIMIT,
                ControlMessageOwned::Ipv6HopLimit(lifetime),
            ) => Some(lifetime),
            _ => None,
        })
}
