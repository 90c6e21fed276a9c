//! The splice path: what waits in bulk goes from socket to socket through a kernel pipe, without user space.
//!
//! A pipe is only ever filled when it is empty, and what a fill finds is never taken for the end of the stream or for an
//! empty socket: `receive` decides those. `splice(2)` cannot, because it sees nothing in front of an urgent byte
//! (`__tcp_splice_read` returns 0, also when the peer has closed behind it) and nothing of a socket that somebody else
//! put into a sockmap.

use std::{
    io,
    os::fd::AsFd,
    sync::atomic::AtomicU64,
    task::{Context, Poll, ready},
};

use nix::errno::Errno;
use tokio::{io::Interest, net::TcpStream};

use super::{direction::count, pipe::Pipe};

/// Waiting bytes from which on a pipe is cheaper than a copy.
pub(super) const WORTH_A_PIPE: usize = 64 * 1024;

/// What a fill found.
pub(super) enum Filled {
    /// Bytes, now in this pipe.
    Pipe(Pipe),
    /// Nothing that `splice(2)` can see.
    Nothing,
    /// There is no pipe to be had, or the kernel will not splice from this socket.
    Unusable,
}

/// Whether an error is about splicing itself and says nothing of the connection.
pub(super) fn is_unusable(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| {
        matches!(
            Errno::from_raw(number),
            Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM
        )
    })
}

/// Fills a pipe from a readable socket. Fails with an error of the socket, which a read would not see again.
pub(super) fn poll_fill(socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Filled>> {
    ready!(socket.poll_read_ready(cx))?;
    let Some(mut pipe) = Pipe::acquire() else {
        return Poll::Ready(Ok(Filled::Unusable));
    };
    // Not through `try_io`: the readiness must outlive this attempt, for the read that decides.
    let filled = match pipe.fill(socket.as_fd()) {
        Ok(0) | Err(Errno::EAGAIN) => Filled::Nothing,
        Ok(_) => return Poll::Ready(Ok(Filled::Pipe(pipe))),
        Err(errno) if is_unusable(&errno.into()) => Filled::Unusable,
        Err(errno) => return Poll::Ready(Err(errno.into())),
    };
    pipe.release();
    Poll::Ready(Ok(filled))
}

/// Empties a pipe into a socket.
pub(super) fn poll_empty(
    pipe: &mut Pipe,
    cx: &mut Context<'_>,
    sink: Option<&TcpStream>,
    moved: &AtomicU64,
) -> Poll<io::Result<()>> {
    let Some(socket) = sink else {
        return Poll::Ready(Err(Errno::EOPNOTSUPP.into()));
    };
    while pipe.held() > 0 {
        ready!(socket.poll_write_ready(cx))?;
        match socket.try_io(Interest::WRITABLE, || Ok(pipe.drain(socket.as_fd())?)) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => count(moved, written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}
