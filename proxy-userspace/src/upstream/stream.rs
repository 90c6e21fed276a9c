//! A connection to an upstream: bare TCP wherever possible, TLS where the last hop before it is `https`.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use crate::socket;

/// A connection whose next byte is the destination's.
///
/// A chain without `https` hops hands back the bare socket, which the relay may splice. With them it is TLS, once more
/// for each `https` hop behind an `https` hop. Written bytes may wait in TLS until [`AsyncWrite::poll_flush`].
#[derive(Debug)]
pub enum UpstreamStream {
    /// The socket itself.
    Tcp(TcpStream),
    /// TLS over what reaches the `https` hop.
    Tls(Box<TlsStream<UpstreamStream>>),
    /// An endpoint on this host; never beneath TLS or a proxy.
    Unix(UnixStream),
}

impl UpstreamStream {
    /// The socket beneath, however many layers of TLS are on it.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        let mut stream = self;
        loop {
            match stream {
                Self::Tcp(tcp) => return Some(tcp),
                Self::Tls(tls) => stream = tls.get_ref().0,
                Self::Unix(_) => return None,
            }
        }
    }

    /// Closes it by [`crate::socket::reset`], without a closing alert of any layer of TLS. A Unix socket knows no reset: the
    /// server sees an end, or `ECONNRESET` where we left bytes of its unread.
    pub fn reset(self) {
        let mut stream = self;
        loop {
            match stream {
                Self::Tcp(tcp) => return socket::reset(tcp),
                Self::Tls(tls) => stream = tls.into_inner().0,
                Self::Unix(_) => return,
            }
        }
    }

    /// Lets the next close be an orderly one.
    pub fn end_orderly(&self) {
        if let Some(tcp) = self.tcp() {
            socket::end_orderly(tcp);
        }
    }

    /// Waits until the server has said something, or the stream has ended or failed. What came stays there.
    pub async fn answered(&mut self) {
        // Whoever reads next hears of errors.
        _ = match self {
            Self::Tcp(tcp) => tcp.readable().await,
            Self::Tls(tls) => tls.fill_buf().await.map(drop),
            Self::Unix(unix) => unix.readable().await,
        };
    }

    /// Copies waiting bytes without taking them; zero at the end of the stream.
    ///
    /// What ends a handshake is followed by bytes that belong to the relay, so a handshake looks before it takes.
    pub(super) async fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.peek(into).await,
            Self::Tls(tls) => {
                let waiting = tls.fill_buf().await?;
                Ok(into
                    .iter_mut()
                    .zip(waiting)
                    .map(|(to, from)| *to = *from)
                    .count())
            }
            // Nobody shakes hands with one.
            Self::Unix(unix) => unix.read(into).await,
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
            Self::Unix(unix) => Pin::new(unix).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
            Self::Unix(unix) => Pin::new(unix).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Tls(tls) => Pin::new(tls).poll_flush(context),
            Self::Unix(unix) => Pin::new(unix).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(context),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(context),
        }
    }
}
