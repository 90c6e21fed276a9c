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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connecting, accepted) = tokio::join!(connecting, listener.accept());
        let (connecting, accepted) = (connecting.unwrap(), accepted.unwrap().0);
        SockRef::from(&accepted)
            .set_out_of_band_inline(true)
            .unwrap();
        (connecting, accepted)
    }

    #[tokio::test]
    async fn bytes_go_from_socket_to_socket() {
        let (mut sender, source) = connected().await;
        let (sink, mut end) = connected().await;
        sender.write_all(b"by pipe").await.unwrap();
        let filled = poll_fn(|cx| poll_fill(&source, cx)).await.unwrap();
        let Filled::Pipe(mut pipe) = filled else {
            panic!("nothing to splice");
        };
        assert_eq!(pipe.held(), 7);
        let moved = AtomicU64::new(0);
        poll_fn(|cx| poll_empty(&mut pipe, cx, Some(&sink), &moved))
            .await
            .unwrap();
        let mut received = [0; 7];
        end.read_exact(&mut received).await.unwrap();
        assert_eq!((&received, moved.into_inner()), (b"by pipe", 7));
    }

    /// Why a fill that moves nothing is no end of stream.
    #[tokio::test]
    async fn nothing_is_seen_in_front_of_an_urgent_byte() {
        let (mut sender, source) = connected().await;
        SockRef::from(&sender).send_out_of_band(b"!").unwrap();
        sender.shutdown().await.unwrap();
        let filled = poll_fn(|cx| poll_fill(&source, cx)).await.unwrap();
        assert!(matches!(filled, Filled::Nothing));
        let mut source = source;
        assert_eq!(source.read_u8().await.unwrap(), b'!');
    }

    /// A reset must not look like an end of stream to the read that comes after.
    #[tokio::test]
    async fn an_error_of_the_socket_is_not_lost() {
        let (sender, source) = connected().await;
        #[expect(deprecated, reason = "zero blocks nobody")]
        sender.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(sender);
        let filled = poll_fn(|cx| poll_fill(&source, cx)).await;
        let error = filled.map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(!is_unusable(&error));
    }
}
