//! What `TCP_REPAIR` (Linux 3.5, `CAP_NET_ADMIN`) does to a connection of our own: it shows the sequence numbers, and lets the
//! connection go on in another socket. Self-tests of the kernel need both, and no connection of anybody else.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
};

use nix::{
    getsockopt_impl, setsockopt_impl, sockopt_impl,
    sys::socket::{getsockopt, setsockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{condition::tcp_info, unacknowledged};

/// The sequence number of the next byte that a socket sends.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the socket's network namespace.
pub fn write_seq(socket: &impl AsFd) -> io::Result<u32> {
    setsockopt(socket, Repair, &ON)?;
    let sequence = queue_seq(socket, SEND_QUEUE);
    setsockopt(socket, Repair, &OFF)?;
    sequence
}

/// Sends the last `old` bytes of a connection again with `new` ones behind them, in one segment: what the peer gets when
/// TCP retransmits with more than was lost. The peer's connection goes on; ours does so in the socket that is returned.
///
/// The peer must be silent meanwhile: what it sends while no socket is there would be answered by a reset.
///
/// The other socket is handed to `prepare` before it is connected, which our own hooks see like any connect.
///
/// # Errors
/// `ResourceBusy` while bytes are unacknowledged, `EPERM` without `CAP_NET_ADMIN`, and what `prepare` says.
pub fn resend(
    stream: TcpStream,
    old: &[u8],
    new: &[u8],
    prepare: impl FnOnce(&Socket, SocketAddr) -> io::Result<()>,
) -> io::Result<TcpStream> {
    if unacknowledged(&stream)? > 0 {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let socket = Socket::new(
        Domain::for_address(local),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    prepare(&socket, peer)?;
    setsockopt(&socket, Repair, &ON)?;
    // Under repair it may have the address of another socket.
    socket.bind(&local.into())?;

    setsockopt(&stream, Repair, &ON)?;
    let image = Image::of(&stream)?;
    // Under repair it closes without a word.
    drop(stream);
    // Both numbers wrap, and no segment is as long as they are wide.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a segment is shorter than 2^32"
    )]
    let first = image.write_seq.wrapping_sub(old.len() as u32);
    set_queue_seq(&socket, SEND_QUEUE, first)?;
    set_queue_seq(&socket, RECEIVE_QUEUE, image.read_seq)?;
    // The option further down comes too late for the size of segments.
    socket.set_tcp_mss(image.info.tcpi_snd_mss.min(LARGEST_MAXSEG))?;
    // Under repair it is connected at once, and the peer hears nothing.
    socket.connect(&peer.into())?;
    for option in image.options() {
        setsockopt(&socket, RepairOptions, &option)?;
    }
    setsockopt(&socket, Timestamp, &image.timestamp)?;
    setsockopt(&socket, RepairWindow, &image.window)?;
    setsockopt(&socket, Repair, &OFF)?;

    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.write_all(&[old, new].concat())?;
    Ok(stream)
}

/// What a socket needs to know to go on with a connection.
struct Image {
    write_seq: u32,
    read_seq: u32,
    timestamp: u32,
    window: Windows,
    info: libc::tcp_info,
}

impl Image {
    /// Of a socket under repair.
    fn of(socket: &impl AsFd) -> io::Result<Self> {
        Ok(Self {
            write_seq: queue_seq(socket, SEND_QUEUE)?,
            read_seq: queue_seq(socket, RECEIVE_QUEUE)?,
            timestamp: getsockopt(socket, Timestamp)?,
            window: getsockopt(socket, RepairWindow)?,
            info: tcp_info(socket.as_fd().as_raw_fd())?,
        })
    }

    /// What the two sides agreed on when they connected, as `TCP_REPAIR_OPTIONS` takes it.
    fn options(&self) -> impl Iterator<Item = RepairOption> {
        const TIMESTAMPS: u8 = 1;
        const SACK: u8 = 2;
        const WINDOW_SCALE: u8 = 4;
        let scales = u32::from(self.info.tcpi_snd_rcv_wscale);
        let agreed = self.info.tcpi_options;
        [
            (u8::MAX, MAXSEG, self.info.tcpi_snd_mss),
            (WINDOW_SCALE, WINDOW, scales & 0xf | (scales >> 4) << 16),
            (SACK, SACK_PERMITTED, 0),
            (TIMESTAMPS, TIMESTAMP, 0),
        ]
        .into_iter()
        .filter(move |(needs, ..)| *needs == u8::MAX || agreed & needs != 0)
        .map(|(_, code, value)| RepairOption { code, value })
    }
}

/// `struct tcp_repair_window` of `include/uapi/linux/tcp.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RepairOption {
    code: u32,
    value: u32,
}

/// Kinds of TCP options, in the type of [`RepairOption`] (RFC 9293 section 3.1, RFC 7323, RFC 2018).
const MAXSEG: u32 = 2;
const WINDOW: u32 = 3;
const SACK_PERMITTED: u32 = 4;
const TIMESTAMP: u32 = 8;

/// The largest `TCP_MAXSEG` (`MAX_TCP_WINDOW` of `include/net/tcp.h`).
const LARGEST_MAXSEG: u32 = 32_767;

/// `TCP_RECV_QUEUE` and `TCP_SEND_QUEUE`.
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;

fn queue_seq(socket: &impl AsFd, queue: i32) -> io::Result<u32> {
    setsockopt(socket, RepairQueue, &queue)?;
    Ok(getsockopt(socket, QueueSeq)?)
}

fn set_queue_seq(socket: &impl AsFd, queue: i32, sequence: u32) -> io::Result<()> {
    setsockopt(socket, RepairQueue, &queue)?;
    Ok(setsockopt(socket, QueueSeq, &sequence)?)
}

/// `TCP_REPAIR_ON`.
const ON: libc::c_int = 1;
/// `TCP_REPAIR_OFF_NO_WP` (Linux 4.19): without a window probe, which would be a word to the peer.
const OFF: libc::c_int = -1;

sockopt_impl!(
    /// Begins and ends the repair.
    Repair, SetOnly, libc::IPPROTO_TCP, libc::TCP_REPAIR, libc::c_int
);
sockopt_impl!(
    /// Which queue the next [`QueueSeq`] is about.
    RepairQueue, SetOnly, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, libc::c_int
);
sockopt_impl!(
    /// The next sequence number of a queue; can be set before the socket is connected.
    QueueSeq, Both, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, u32
);
sockopt_impl!(
    /// See [`Image::options`].
    RepairOptions, SetOnly, libc::IPPROTO_TCP, libc::TCP_REPAIR_OPTIONS, RepairOption
);
sockopt_impl!(
    /// The clock behind the timestamps that the peer expects to go on (Linux 3.9).
    Timestamp, Both, libc::IPPROTO_TCP, libc::TCP_TIMESTAMP, u32
);
sockopt_impl!(
    /// What both sides may send (Linux 4.8).
    RepairWindow, Both, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, Windows
);

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    };

    use super::*;

    /// A peer that nobody interferes with takes each byte once, and the connection goes on both ways.
    fn goes_on(address: SocketAddr) {
        if !nix::unistd::geteuid().is_root() {
            let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
            assert!(!strict, "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let listener = TcpListener::bind(address).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut arrived = [0; 6];
        stream.write_all(b"abcdef").unwrap();
        peer.read_exact(&mut arrived).unwrap();
        while unacknowledged(&stream).unwrap() > 0 {
            std::thread::yield_now();
        }
        let before = write_seq(&stream).unwrap();
        let mut stream = resend(stream, b"def", b"ghijkl", |_, _| Ok(())).unwrap();
        assert_eq!(write_seq(&stream).unwrap(), before.wrapping_add(6));
        peer.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"ghijkl");
        peer.write_all(b"answer").unwrap();
        stream.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"answer");
        drop(stream);
        assert_eq!(peer.read(&mut arrived).unwrap(), 0);
    }

    #[test]
    fn a_connection_goes_on_behind_what_was_sent_again() {
        goes_on((Ipv4Addr::LOCALHOST, 0).into());
        goes_on((Ipv6Addr::LOCALHOST, 0).into());
    }
}
