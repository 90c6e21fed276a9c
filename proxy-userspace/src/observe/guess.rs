//! Why no packet was sent, as far as that can be guessed: no hook is told what `connect()` has returned.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::errno::Errno;
use proxy_common::Sighting;

use crate::socket;

/// Asks in this process's network namespace, if the kernel tells which that is (5.14).
#[derive(Debug)]
pub(super) struct Guess {
    here: Option<u64>,
}

impl Guess {
    pub(super) fn new() -> Self {
        Self {
            here: own_network(),
        }
    }

    /// What the kernel says of a datagram socket with the same destination: it looks for a route, and sends nothing. A route that only
    /// some processes have, by a mark or a user, is not found so.
    pub(super) fn why(&self, to: SocketAddr, sighting: &Sighting) -> Option<Errno> {
        if self.here != Some(sighting.netns_cookie) {
            return None;
        }
        let error = socket_for(to).and_then(|socket| socket.connect(to)).err()?;
        error.raw_os_error().map(Errno::from_raw)
    }
}

/// This process's network namespace, if the kernel tells which that is.
pub(super) fn own_network() -> Option<u64> {
    let socket = socket_for(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    socket.and_then(|socket| socket::netns_cookie(&socket)).ok()
}

fn socket_for(to: SocketAddr) -> io::Result<UdpSocket> {
    if to.is_ipv4() {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
    }
}
