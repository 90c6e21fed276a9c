//! Whether a process is the one that accepts connections at an address of this host, and which one is.
//!
//! Asked of the process that opened an intercepted connection, when the connection would go to a proxy on the same
//! host: is it that proxy itself?

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use procfs::{
    FromBufReadSI, ProcResult, current_system_info,
    net::TcpNetEntries,
    process::{FDTarget, Process as ProcDir},
};

/// Tables of the TCP sockets of this network namespace; the second is not there without IPv6.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// `TCP_LISTEN` as these tables write it.
const LISTEN: &str = "0A";

/// Whether a process holds a socket that listens at an address of this network namespace. What cannot be found out,
/// such as the files of another user's process without `CAP_SYS_PTRACE`, counts as no.
pub(super) fn serves(process: &ProcDir, address: SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    if !is_local(address.ip()) {
        return false;
    }
    let listening = listening_at(address);
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

/// A descriptor of a socket that listens at an address of this network namespace, taken from the process that holds it
/// (`pidfd_getfd`, kernel 5.6). To be given up soon: while it is open the socket listens, whatever becomes of the process.
pub(super) fn listener_at(address: SocketAddr) -> Option<OwnedFd> {
    // As the kernel prefers them: at the very address, then at all of its family; a socket of IPv6 may take IPv4, too.
    let rank = |local: &SocketAddr| {
        let is_exact = !local.ip().is_unspecified();
        (!is_exact, local.is_ipv4() != address.is_ipv4())
    };
    let best = sockets_at(address).min_by_key(|(local, _)| rank(local));
    let (_, wanted) = best?;
    procfs::process::all_processes()
        .ok()?
        .flatten()
        .find_map(|process| {
            let mut files = process.fd().ok()?.flatten();
            let held = files
                .find(|file| matches!(file.target, FDTarget::Socket(inode) if inode == wanted))?;
            take(process.pid, held.fd).ok()
        })
}

/// A descriptor of what another process has under a number.
fn take(pid: i32, number: i32) -> io::Result<OwnedFd> {
    let process = descriptor(
        // SAFETY: the call takes numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) },
    )?;
    // SAFETY: as above; the descriptor is open.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    descriptor(taken)
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
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

/// Inode numbers of the sockets that take connections to an address.
fn listening_at(address: SocketAddr) -> HashSet<u64> {
    sockets_at(address).map(|(_, inode)| inode).collect()
}

/// The sockets that take connections to an address: where they listen, and their inode numbers.
fn sockets_at(address: SocketAddr) -> impl Iterator<Item = (SocketAddr, u64)> {
    let takes = move |local: SocketAddr| {
        let ip = local.ip().to_canonical();
        local.port() == address.port() && (ip.is_unspecified() || ip == address.ip())
    };
    TABLES
        .iter()
        .filter_map(|table| listeners(BufReader::new(File::open(table).ok()?)).ok())
        .flat_map(|table| table.0)
        .filter(move |socket| takes(socket.local_address))
        .map(|socket| (socket.local_address, socket.inode))
}

/// The listening sockets of a table. They come first (`tcp_get_idx()` in `net/ipv4/tcp_ipv4.c`), so what is read does
/// not grow with the connections of the host.
fn listeners(table: impl BufRead) -> ProcResult<TcpNetEntries> {
    let mut rows = String::new();
    for (number, row) in table.lines().enumerate() {
        let row = row?;
        let is_heading = number == 0;
        if !is_heading && row.split_ascii_whitespace().nth(3) != Some(LISTEN) {
            break;
        }
        rows.push_str(&row);
        rows.push('\n');
    }
    TcpNetEntries::from_buf_read(rows.as_bytes(), current_system_info())
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

    #[test]
    fn reading_stops_behind_the_listeners() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1\n   \
                     1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 42 1\n   \
                     2: this is never parsed\n";
        let found = listeners(table.as_bytes()).unwrap().0;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].inode, 41);
    }
}
