//! Sockets that somebody gave a layer above TCP: the kernel takes none of them into a sockmap. The relay gives its own none, and no
//! program in the kernel can, so here it is a process that takes them from the daemon. The running kernel may be built without
//! kTLS, which Debian's are not: only guests run this.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use culvert_tests::{Sandbox, daemon::Settings, peer::Server, rules::ALL, sandbox::SERVER_V4};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::TcpUlp},
};
use socket2::SockRef;

/// Whose socket gets the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Nobody,
    Downstream,
    Upstream,
}

/// A descriptor that the kernel has just returned.
fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    let number = Errno::result(returned)?;
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has made it for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A process's own socket to a peer.
fn socket_of(pid: u32, peer: SocketAddr) -> OwnedFd {
    // SAFETY: the call takes numbers.
    let process = descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).unwrap();
    let numbers = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut taken = numbers.filter_map(|entry| {
        let number: RawFd = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // SAFETY: as above.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        descriptor(taken).ok()
    });
    let is_it = |file: &OwnedFd| {
        let found = SockRef::from(file).peer_addr().ok();
        found.and_then(|found| found.as_socket()) == Some(peer)
    };
    taken.find(is_it).unwrap()
}

#[test]
fn sockets_with_a_layer_above_tcp_are_copied() {
    let available = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap();
    assert!(available.contains("tls"), "{available}");
    let sandbox = Sandbox::new();
    let server = sandbox.within(|| Server::echo((SERVER_V4, 0)));
    let settings = Settings::daemon("promote = { bytes = \"1000B\", reads = 4294967295 }");
    let culvert = sandbox.culvert_with(&settings, &format!("{ALL}path = \"sockmap\"\n"));
    let app = sandbox.app();
    for (number, side) in (1..).zip([Side::Nobody, Side::Downstream, Side::Upstream]) {
        let socket = app.tcp(server.address());
        socket.connect(server.address()).unwrap();
        socket.exchange(1, 100).unwrap();
        let peer = match side {
            Side::Nobody => None,
            Side::Downstream => Some(socket.local().unwrap()),
            Side::Upstream => Some(server.address()),
        };
        if let Some(peer) = peer {
            let taken = socket_of(culvert.pid(), peer);
            setsockopt(&taken, TcpUlp::default(), b"tls").unwrap();
        }
        // Without keys it changes nothing about the bytes.
        for seed in 2..20 {
            socket.exchange(seed, 2000).unwrap();
        }
        socket.close();
        let record = culvert.await_records(number).remove(number - 1);
        assert_eq!(record.reason, "done", "{side:?}: {record:?}");
        assert_eq!((record.up, record.down), (36_100, 36_100), "{record:?}");
        if side == Side::Nobody {
            assert!(record.bytes.sockmap > 0, "{record:?}");
            continue;
        }
        let told = (record.path.as_deref(), record.path_reason.as_deref());
        assert_eq!(told, (Some("copy"), Some("foreign_sockmap")), "{record:?}");
        assert_eq!(record.bytes.sockmap, 0, "{side:?}: {record:?}");
    }
}
