//! The demonstration's network: a namespace of its own, whose loopback has addresses for documentation (RFC 5737,
//! RFC 3849). Nothing in it can reach anything outside, and nothing outside changes.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    ptr,
};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockAddr, Socket, Type};

/// Addresses of its loopback: all of `192.0.2.0/24`, of which this is where the proxy listens.
pub(super) const HOME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The namespace of the calling thread, by the inode number that `/proc/PID/ns/net` has.
pub(super) fn current() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Moves the calling thread, and all it starts from now on, into a new namespace.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`.
pub(super) fn enter() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Brings the loopback up and gives it its addresses; returns whether it has those of `v6` as well.
///
/// # Errors
/// When the system refuses, which a new namespace gives no reason to.
pub(super) fn set_up(v6: &[Ipv6Addr]) -> io::Result<bool> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let up = libc::__c_anonymous_ifr_ifru {
        ifru_flags: libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?,
    };
    control(&socket, libc::SIOCSIFFLAGS, &request("lo", up))?;
    // A second address (that is what the name means). The kernel derives the prefix length from the address class, 24,
    // and makes all of that prefix local, as it does on a loopback (`fib_add_ifaddr()` in net/ipv4/fib_frontend.c).
    let address = libc::__c_anonymous_ifr_ifru {
        ifru_addr: sockaddr(HOME),
    };
    control(&socket, libc::SIOCSIFADDR, &request("lo:1", address))?;
    Ok(add_v6(v6)
        .inspect_err(|error| tracing::debug!(%error, "no IPv6"))
        .is_ok())
}

fn add_v6(addresses: &[Ipv6Addr]) -> io::Result<()> {
    // The new namespace may have inherited that IPv6 is off.
    let _ = fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0");
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    let loopback = nix::net::if_::if_nametoindex("lo")?;
    for address in addresses {
        let request = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr {
                s6_addr: address.octets(),
            },
            ifr6_prefixlen: 128,
            ifr6_ifindex: loopback.cast_signed(),
        };
        control(&socket, libc::SIOCSIFADDR, &request)?;
    }
    Ok(())
}

fn request(interface: &str, value: libc::__c_anonymous_ifr_ifru) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    libc::ifreq {
        ifr_name,
        ifr_ifru: value,
    }
}

fn sockaddr(ip: Ipv4Addr) -> libc::sockaddr {
    let address = SockAddr::from(SocketAddrV4::new(ip, 0));
    // SAFETY: it points to a `sockaddr_storage`, which is larger than a `sockaddr` and aligned at least as well.
    unsafe { *address.as_ptr().cast() }
}

fn control<T>(socket: &Socket, request: libc::c_ulong, value: &T) -> io::Result<()> {
    // SAFETY: these requests read an `ifreq`, on IPv6 sockets an `in6_ifreq`, and callers pass just that.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request as _, ptr::from_ref(value)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_where_the_kernel_looks_for_it() {
        let address = sockaddr(HOME);
        let octets: Vec<u8> = address
            .sa_data
            .iter()
            .flat_map(|it| it.to_ne_bytes())
            .collect();
        assert_eq!(octets[..6], [0, 0, 192, 0, 2, 1], "port and address");
    }
}
