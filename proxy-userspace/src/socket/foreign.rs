//! Sockets that connect from addresses of others (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use nix::{errno::Errno, setsockopt_impl, sockopt_impl, sys::socket::setsockopt};
use socket2::Socket;

/// The port that a socket connects from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcePort {
    /// This one. `ephemeral` are those that the kernel chooses from when it is asked to.
    This {
        /// The port.
        port: u16,
        /// See `net.ipv4.ip_local_port_range`.
        ephemeral: RangeInclusive<u16>,
    },
    /// Whichever the kernel chooses.
    Any,
}

/// Has an unconnected socket connect from an address that need not be of this host.
///
/// Two sockets may have the same address and port as long as they are connected to different peers. A socket that is bound to a
/// port of the ephemeral ones would keep the kernel from choosing that port for any connection of the host, whatever its addresses:
/// with some ten thousand clients the host could open none any more (tried on 6.18: with all of a range of ten bound, `connect()`
/// fails with `EADDRNOTAVAIL` at once). So there the kernel is asked to choose, when it connects, from a range of one (kernel 6.3).
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL` or `EACCES` when the port cannot be had, which [`is_taken`] tells from what is wrong; the
/// same may come of the connect. `EPERM` without `CAP_NET_RAW` or `CAP_NET_ADMIN`.
pub fn bind_foreign(socket: &Socket, ip: IpAddr, port: &SourcePort) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    let SourcePort::This { port, ephemeral } = port else {
        setsockopt(socket, BindAddressNoPort, &true)?;
        return socket.bind(&SocketAddr::new(ip, 0).into());
    };
    if ephemeral.contains(port) && narrow(socket, *port)? {
        setsockopt(socket, BindAddressNoPort, &true)?;
        return socket.bind(&SocketAddr::new(ip, 0).into());
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(ip, *port).into())
}

/// Whether an error of [`bind_foreign`], or of a connect after it, says that the port cannot be had.
#[must_use]
pub fn is_taken(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| {
        matches!(
            Errno::from_raw(number),
            // The last is for ports below 1024 (CAP_NET_BIND_SERVICE).
            Errno::EADDRINUSE | Errno::EADDRNOTAVAIL | Errno::EACCES
        )
    })
}

/// Has the kernel choose from one port only; false where it cannot.
fn narrow(socket: &Socket, port: u16) -> io::Result<bool> {
    let range = u32::from(port) << 16 | u32::from(port);
    match setsockopt(socket, LocalPortRange, &range) {
        Ok(()) => Ok(true),
        Err(Errno::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `IP_LOCAL_PORT_RANGE`: the greatest port above the least; for sockets of both families.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

sockopt_impl!(
    /// The port is chosen by the connect, when the peer is known; for sockets of both families (kernel 4.2).
    BindAddressNoPort, SetOnly, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, bool
);
sockopt_impl!(
    /// See [`narrow`].
    LocalPortRange, SetOnly, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, u32
);
