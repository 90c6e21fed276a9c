//! Every TCP socket this process makes, and every option it sets or reads.
//!
//! Listeners and upstream sockets are created here and nowhere else, so that one place decides what all of them have
//! in common. It knows neither rules nor proxies: callers bring addresses and get sockets.

mod condition;
mod foreign;
mod ingress;
pub mod repair;

use std::{
    io,
    mem::offset_of,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

pub use self::{
    condition::{Condition, Handle},
    foreign::{SourcePort, bind_foreign, is_taken},
};
use nix::{
    errno::Errno,
    getsockopt_impl,
    ifaddrs::getifaddrs,
    ioctl_read_bad,
    net::if_::InterfaceFlags,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    setsockopt_impl, sockopt_impl,
    sys::socket::{MsgFlags, getsockopt, recv, setsockopt},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;

/// A non-blocking listener on `address` that shares its port with the listeners of the other workers.
///
/// Accepted sockets inherit the options of [`for_upstream`], so accepting one costs no further call; being kept alive is none of
/// them. An IPv6 listener takes IPv6 only.
///
/// # Errors
///
/// That of the system call that failed: mostly the address is taken or foreign.
pub fn listener(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = stream_socket(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    } else {
        ingress::be_told(&socket)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// As [`listener`], with a port of its own, and transparent: it takes connections to any address that it is given, and answers from
/// there (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`, which who is accepted inherits).
///
/// # Errors
///
/// Without `CAP_NET_ADMIN` or `CAP_NET_RAW`.
pub fn gate(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = stream_socket(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
        ingress::be_told(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// An unconnected, non-blocking socket of the address family of `address`, with the options of relayed connections.
///
/// Those are: no delay, urgent data left in the stream, where the relay carries it as ordinary bytes, reads that tell what
/// waits behind them (`TCP_INQ`), and closing by [`reset`]. One that lasts is also kept alive ([`Handle::keep_alive`]).
///
/// # Errors
///
/// That of the system call that failed: mostly [`is_resource_exhaustion`].
pub fn for_upstream(address: SocketAddr) -> io::Result<Socket> {
    stream_socket(address)
}

/// Closes a connection with RST instead of FIN: what the other side of the relay suffered, this side learns.
///
/// Every socket of ours is closed so, also by the kernel when this process is killed, unless [`end_orderly`] said
/// otherwise: a truncated answer must never look whole.
pub fn reset(stream: TcpStream) {
    drop(stream);
}

/// Lets the next close of a socket be an orderly one. To be called when both directions have ended; on a listener, it
/// holds for what it accepts.
pub fn end_orderly(stream: &impl AsFd) {
    // Only a socket that is gone already can refuse, and then there is nobody left to tell.
    _ = SockRef::from(stream).set_linger(None);
}

/// The number the kernel never gives to another socket (`SO_COOKIE`, Linux 4.12).
///
/// # Errors
///
/// `ENOPROTOOPT` on older kernels.
pub fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    SockRef::from(socket).cookie()
}

/// The number of the network namespace a socket belongs to (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
///
/// `ENOPROTOOPT` on older kernels, where a hook is asked.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    Ok(getsockopt(socket, NetnsCookie)?)
}

/// Whether sockets tell their network namespace ([`netns_cookie`]); since kernel 5.14.
#[must_use]
pub fn tells_namespace() -> bool {
    UnixDatagram::unbound().is_ok_and(|socket| netns_cookie(&socket).is_ok())
}

/// Takes the error that waits on a socket (`SO_ERROR`), such as the reset that ended it.
///
/// # Errors
///
/// None in practice: the option exists on every socket.
pub fn take_error(socket: &impl AsFd) -> io::Result<Option<io::Error>> {
    SockRef::from(socket).take_error()
}

/// Bytes of the stream that were given to the kernel to send, acknowledged or not, counted from an arbitrary start. What is
/// acknowledged during the call may be missing.
///
/// # Errors
///
/// `ECONNRESET` when the connection has ended, however it did. The error that ended it stays on the socket: whoever reads next
/// must find it, and not an end of the stream.
pub fn sent(socket: &impl AsFd) -> io::Result<u64> {
    let info = getsockopt(socket, TcpInfo)?;
    if info.state == TCP_CLOSE {
        return Err(Errno::ECONNRESET.into());
    }
    // In this order: what is acknowledged in between is missing, never counted twice.
    Ok(info.bytes_acked + unacknowledged(socket)?)
}

/// As [`sent`], which may say too little while acknowledgements come in, but exact: for a figure that others are compared with.
///
/// # Errors
///
/// As [`sent`].
pub fn sent_exactly(socket: &impl AsFd) -> io::Result<u64> {
    let mut acknowledged = getsockopt(socket, TcpInfo)?.bytes_acked;
    loop {
        let sent = sent(socket)?;
        let after = getsockopt(socket, TcpInfo)?.bytes_acked;
        if after == acknowledged {
            return Ok(sent);
        }
        acknowledged = after;
    }
}

/// Whether a connection has ended both ways, or was reset.
///
/// # Errors
///
/// None in practice.
pub fn has_ended(socket: &impl AsFd) -> io::Result<bool> {
    Ok(getsockopt(socket, TcpInfo)?.state == TCP_CLOSE)
}

/// The number of an interface in the network namespace of this thread; `None` when there is none of that name.
#[must_use]
pub fn interface_number(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// The name of an interface in the network namespace of this thread.
#[must_use]
pub fn interface_name(number: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(number).ok()?;
    // The null pointer that says that there is none is a success to nix 0.31.
    name.into_string().ok().filter(|name| !name.is_empty())
}

/// Whether there is an interface of this number in the network namespace of this thread.
#[must_use]
pub fn has_interface(number: u32) -> bool {
    interface_name(number).is_some()
}

/// Whether loopback is up in the network namespace of this thread.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_loopback_up() -> io::Result<bool> {
    let up = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP;
    Ok(getifaddrs()?.any(|interface| interface.flags.contains(up)))
}

/// Has the kernel report with each read how many bytes wait behind it (`TCP_INQ`, Linux 4.18). Where it refuses, who reads goes on
/// until nothing is left.
pub(crate) fn report_waiting(socket: &impl AsFd) {
    _ = setsockopt(socket, ReportWaiting, &true);
}

/// The number of the interface that a connection arrived by, as the kernel noted it when the handshake ended
/// (`mc_index` and `mcast_oif` in `tcp_v4_syn_recv_sock()` and `tcp_v6_syn_recv_sock()`): what `sk_lookup` saw of the SYN.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn ingress_interface(stream: &TcpStream, local: SocketAddr) -> io::Result<u32> {
    ingress::interface(stream, local.is_ipv4())
}

/// Connections that wait to be accepted (`tcp_get_info()` in `net/ipv4/tcp.c` tells it of listeners in this field).
///
/// # Errors
///
/// None in practice.
pub fn accept_queue(listener: &impl AsFd) -> io::Result<u32> {
    Ok(getsockopt(listener, TcpInfo)?.unacked)
}

/// Bytes of the stream that were given to the kernel to send and that the peer has not acknowledged.
///
/// # Errors
///
/// None in practice.
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<u64> {
    queued(socket.as_fd().as_raw_fd(), outq)
}

/// Bytes that arrived and were not read. Waits until nobody else handles what arrives on the socket (the ioctl takes its
/// lock, `tcp_ioctl()` in `net/ipv4/tcp.c`).
///
/// # Errors
///
/// None in practice.
pub fn unread(socket: &impl AsFd) -> io::Result<u64> {
    queued(socket.as_fd().as_raw_fd(), inq)
}

/// Whether bytes wait, or the peer has ended or failed the stream; of a listener, whether a connection waits.
///
/// # Errors
///
/// None in practice.
pub fn has_news(socket: &impl AsFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
}

/// Has the kernel handle what arrived before the socket was put into a sockmap, as if it arrived now
/// (`tcp_set_rcvlowat()` in `net/ipv4/tcp.c`, Linux 4.18).
///
/// # Errors
///
/// None in practice.
pub fn handle_waiting(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, ReceiveLowWater, &1)?)
}

/// Has the socket wake nobody before so many bytes wait, or the peer has ended or failed the stream. [`handle_waiting`] takes
/// it back.
///
/// # Errors
///
/// None in practice.
pub fn wake_at(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    Ok(setsockopt(socket, ReceiveLowWater, &bytes)?)
}

/// Copies the bytes that wait and leaves them where they are.
///
/// # Errors
///
/// [`io::ErrorKind::WouldBlock`] when there are none, or that of the connection.
pub fn peek(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(
        socket.as_fd().as_raw_fd(),
        buffer,
        MsgFlags::MSG_PEEK,
    )?)
}

type QueueLength = unsafe fn(libc::c_int, *mut libc::c_int) -> nix::Result<libc::c_int>;

fn queued(fd: RawFd, which: QueueLength) -> io::Result<u64> {
    let mut length = 0;
    // SAFETY: both requests write one integer, which outlives the call, whatever kind of file the number stands for.
    unsafe { which(fd, &raw mut length) }?;
    Ok(u64::try_from(length).unwrap_or(0))
}

/// The beginning of `struct tcp_info`, which every kernel in use fills; the rest grows from version to version.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpInfoHead {
    state: u8,
    others: [u8; offset_of!(libc::tcp_info, tcpi_unacked) - 1],
    unacked: u32,
    rest: [u8; offset_of!(libc::tcp_info, tcpi_bytes_acked)
        - offset_of!(libc::tcp_info, tcpi_unacked)
        - 4],
    bytes_acked: u64,
}

/// `TCP_CLOSE` of the kernel's `tcp_states.h`.
const TCP_CLOSE: u8 = 7;

ioctl_read_bad!(
    /// `SIOCOUTQ`: bytes in the send queue, sent ones that are not acknowledged included (tcp(7)).
    outq, libc::TIOCOUTQ, libc::c_int
);
ioctl_read_bad!(
    /// `SIOCINQ`: see [`unread`].
    inq, libc::FIONREAD, libc::c_int
);
sockopt_impl!(
    /// Statistics of a connection; `tcpi_bytes_acked` since Linux 4.1.
    TcpInfo, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, TcpInfoHead
);
sockopt_impl!(
    /// See [`report_waiting`].
    ReportWaiting, SetOnly, libc::SOL_TCP, libc::TCP_INQ, bool
);
sockopt_impl!(
    /// See [`handle_waiting`].
    ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, libc::c_int
);

/// Whether an error says that this process or host ran out of files or memory, which passes, and which says nothing
/// about the connection it hit.
#[must_use]
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| {
        matches!(
            Errno::from_raw(number),
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS
        )
    })
}

/// The protocol is named because "any stream protocol" may mean MPTCP, which neither sockmap nor splice can take.
fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    report_waiting(&socket);
    // See `reset`; it does not touch shutdown(2).
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

sockopt_impl!(
    /// See [`netns_cookie`].
    NetnsCookie, GetOnly, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, u64
);

#[cfg(test)]
mod tests;
