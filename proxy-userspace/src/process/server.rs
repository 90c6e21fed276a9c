//! Whether a process is the one that accepts connections at an address of this host.
//!
//! Asked of the process that opened an intercepted connection, when the connection would go to a proxy on the same
//! host: is it that proxy itself?

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use procfs::process::{FDTarget, Process as ProcDir};

use super::listening::Listening;

/// Whether a process holds a socket that listens at an address of this network namespace. What cannot be found out,
/// such as the files of another user's process without `CAP_SYS_PTRACE`, counts as no.
pub(super) fn serves(process: &ProcDir, address: SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if !is_local(address.ip()) {
        return false;
    }
    let listening: HashSet<_> = Listening::read()
        .at(address)
        .map(|(_, inode)| inode)
        .collect();
    if listening.is_empty() {
        return false;
    }
    let Ok(files) = process.fd() else {
        return false;
    };
    files
        .flatten()
        .any(|file| matches!(file.target, FDTarget::Socket(inode) if listening.contains(&inode)))
}

/// Whether packets to an address stay on this host.
fn is_local(ip: IpAddr) -> bool {
    let own = || {
        getifaddrs().is_ok_and(|mut interfaces| {
            interfaces.any(|interface| interface.address.as_ref().and_then(ip_of) == Some(ip))
        })
    };
    ip.is_loopback() || own()
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        process::Command,
    };

    use super::*;

    fn listener(ip: impl Into<IpAddr>) -> (TcpListener, u16) {
        let listener = TcpListener::bind((ip.into(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[test]
    fn a_process_serves_where_it_listens() {
        let me = ProcDir::myself().unwrap();
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let (listener, port) = listener(ip);
            assert!(serves(&me, (ip, port).into()), "{ip}");
            let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
            assert!(!serves(&me, (elsewhere, port).into()), "only at {ip}");
            drop(listener);
            assert!(!serves(&me, (ip, port).into()), "no longer at {ip}");
        }
    }

    #[test]
    fn a_socket_without_address_serves_at_all_of_this_host_and_no_other() {
        let me = ProcDir::myself().unwrap();
        let (_v4, port) = listener(Ipv4Addr::UNSPECIFIED);
        assert!(serves(&me, (Ipv4Addr::LOCALHOST, port).into()));
        assert!(!serves(&me, (Ipv4Addr::new(192, 0, 2, 1), port).into()));
        let (_v6, port) = listener(Ipv6Addr::UNSPECIFIED);
        assert!(serves(&me, (Ipv6Addr::LOCALHOST, port).into()));
        assert!(
            serves(&me, (Ipv4Addr::LOCALHOST, port).into()),
            "dual stack"
        );
    }

    #[test]
    fn who_only_connects_does_not_serve() {
        let (listener, port) = listener(Ipv4Addr::LOCALHOST);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let other = ProcDir::new(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!serves(&other, (Ipv4Addr::LOCALHOST, port).into()));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let me = ProcDir::myself().unwrap();
        assert!(!serves(&me, client.local_addr().unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
