//! Reading from one side, and knowing what still waits there.
//!
//! Sockets of ours report with each read how many bytes wait behind it (`TCP_INQ`). That saves
//! the extra read that would find nothing, and it is exact where the usual guess, that a short read has emptied the
//! socket, is not: a read stops in front of an urgent byte (`tcp_recvmsg_locked`), and with edge-triggered epoll the
//! bytes behind it would wait for an event that already came.

use std::{
    io,
    mem::{self, offset_of},
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use libc::{c_int, c_void};
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
};

use super::Side;

/// One successful read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Bytes read; 0 is the end of the stream.
    pub(super) bytes: usize,
    /// Bytes that wait behind them, where the kernel said so. The end of the stream counts as one.
    pub(super) waiting: Option<usize>,
}

/// Reads once into `buffer`, which must not be empty.
pub(super) fn poll<S: Side>(
    source: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<Received>> {
    if let Some(socket) = source.plain() {
        return poll_plain(socket, cx, buffer);
    }
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(source).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(Received {
        bytes: buffer.filled().len(),
        waiting: None,
    }))
}

/// Reads once what is there, also where the runtime has not heard of it yet. `None` if that is nothing.
pub(super) fn at_once<S: Side>(
    source: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Option<usize> {
    let received = match source.plain() {
        Some(socket) => receive(socket.as_raw_fd(), buffer),
        None => match poll(source, cx, buffer) {
            Poll::Ready(received) => received,
            Poll::Pending => return None,
        },
    };
    received
        .ok()
        .map(|received| received.bytes)
        .filter(|bytes| *bytes > 0)
}

fn poll_plain(
    socket: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<Received>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let mut received = None;
        let outcome = socket.try_io(Interest::READABLE, || {
            let read = receive(socket.as_raw_fd(), buffer)?;
            received = Some(read);
            // Nothing waits: let tokio forget the readiness now, as it would after a read that found nothing.
            if read.bytes > 0 && read.waiting == Some(0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match (received, outcome) {
            (Some(received), _) => return Poll::Ready(Ok(received)),
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            (None, _) => {}
        }
    }
}

/// Room for the one control message the kernel sends, laid out as `CMSG_DATA` expects it.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    waiting: c_int,
}

fn receive(socket: RawFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast::<c_void>(),
        iov_len: buffer.len(),
    };
    // SAFETY: both are plain C structs of integers and pointers, for which all bits zero is a value.
    let (mut control, mut message): (Control, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast::<c_void>();
    message.msg_controllen = size_of::<Control>();

    // SAFETY: `message` points at one iovec that covers exactly `buffer`, borrowed mutably, and at `control` with its
    // size; all of them outlive the call. A closed descriptor would only be an error.
    let read = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let reported = message.msg_controllen >= offset_of!(Control, waiting) + size_of::<c_int>()
        && control.header.cmsg_level == libc::SOL_TCP
        && control.header.cmsg_type == libc::TCP_INQ;
    let waiting = reported
        .then(|| usize::try_from(control.waiting).ok())
        .flatten();
    Ok(Received { bytes, waiting })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use socket2::SockRef;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::socket::report_waiting;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connecting, accepted) = tokio::join!(connecting, listener.accept());
        (connecting.unwrap(), accepted.unwrap().0)
    }

    async fn read(socket: &TcpStream, size: usize) -> (usize, Option<usize>) {
        let mut buffer = vec![0; size];
        let received = poll_fn(|cx| poll_plain(socket, cx, &mut buffer))
            .await
            .unwrap();
        (received.bytes, received.waiting)
    }

    #[tokio::test]
    async fn the_kernel_says_what_waits() {
        let (mut sender, receiver) = connected().await;
        report_waiting(&receiver);
        sender.write_all(&[1; 100]).await.unwrap();
        assert_eq!(read(&receiver, 60).await, (60, Some(40)));
        assert_eq!(read(&receiver, 60).await, (40, Some(0)));
        sender.write_all(&[2; 10]).await.unwrap();
        sender.shutdown().await.unwrap();
        assert_eq!(read(&receiver, 60).await, (10, Some(1)));
        assert_eq!(read(&receiver, 60).await.0, 0);
    }

    #[tokio::test]
    async fn a_read_stops_in_front_of_an_urgent_byte() {
        let (sender, receiver) = connected().await;
        report_waiting(&receiver);
        let receiving = SockRef::from(&receiver);
        receiving.set_out_of_band_inline(true).unwrap();
        let sending = SockRef::from(&sender);
        sending.send(b"ab").unwrap();
        sending.send_out_of_band(b"c").unwrap();
        sending.send(b"de").unwrap();
        assert_eq!(read(&receiver, 60).await, (2, Some(3)));
        assert_eq!(read(&receiver, 60).await, (3, Some(0)));
    }

    #[tokio::test]
    async fn a_socket_that_does_not_report_is_read_until_empty() {
        let (mut sender, receiver) = connected().await;
        sender.write_all(&[1; 100]).await.unwrap();
        assert_eq!(read(&receiver, 60).await, (60, None));
        assert_eq!(read(&receiver, 60).await, (40, None));
    }
}
