//! An app and a server with a relay between them, on loopback.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use proxy_userspace::{
    intercept::{Overlap, Redirects},
    relay::{Ended, Progress, Promotion, Relay, Side},
    rule::PathChoice,
    socket::{self, repair},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::payload::expect_text;

/// Longer than anything here may take; a test that gets here hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// Runs each test function named on each path.
macro_rules! on_each_path {
    ($($test:ident),* $(,)?) => {
        mod copy {
            $(#[tokio::test]
            async fn $test() {
                crate::rig::in_time(super::$test(proxy_userspace::rule::PathChoice::Copy)).await;
            })*
        }
        mod splice {
            $(#[tokio::test]
            async fn $test() {
                crate::rig::in_time(super::$test(proxy_userspace::rule::PathChoice::Splice)).await;
            })*
        }
        mod sockmap {
            $(#[tokio::test]
            async fn $test() {
                if crate::rig::promotion().is_none() {
                    return;
                }
                crate::rig::in_time(super::$test(proxy_userspace::rule::PathChoice::Sockmap)).await;
            })*
        }
    };
}
pub(crate) use on_each_path;

/// Fails a test that hangs.
pub(crate) async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(PATIENCE, test).await.expect("the test hangs")
}

/// Hands connections to the kernel before they have moved a byte. `None`, which a strict run does not accept, without the
/// privileges to load programs.
pub(crate) fn promotion() -> Option<Promotion> {
    static ALL: OnceLock<Option<Promotion>> = OnceLock::new();
    ALL.get_or_init(|| promotion_with(Overlap::Cut)).clone()
}

/// As [`promotion`], with a program that does something else about bytes that come again.
pub(crate) fn promotion_with(overlap: Overlap) -> Option<Promotion> {
    let (accelerator, mut events) = match Redirects::alone_with(overlap) {
        Ok(redirects) => redirects,
        Err(error) => {
            let strict = std::env::var_os("PROXY_TEST_STRICT").is_some();
            assert!(!strict, "needs root: {error}");
            eprintln!("skipped: needs root ({error})");
            return None;
        }
    };
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(events.serve()).unwrap();
    });
    Some(Promotion {
        accelerator,
        bytes: 0,
        reads: 0,
    })
}

/// Both ends of a relayed connection.
pub(crate) struct Rig {
    pub(crate) app: TcpStream,
    pub(crate) server: TcpStream,
    pub(crate) progress: Arc<Progress>,
    pub(crate) ended: JoinHandle<Ended>,
}

impl Rig {
    /// With the kernel's own socket buffers.
    pub(crate) async fn new(path: PathChoice) -> Self {
        Self::with_buffers(path, None).await
    }

    /// With all eight socket buffers of about `buffers` bytes.
    pub(crate) async fn with_buffers(path: PathChoice, buffers: Option<u32>) -> Self {
        let (downstream, upstream) = (connected(buffers).await, connected(buffers).await);
        Self::over(path, downstream, upstream)
    }

    /// On the sockmap path, entered as this says.
    pub(crate) async fn promoted(promotion: Promotion) -> Self {
        let (downstream, upstream) = (connected(None).await, connected(None).await);
        Self::start(PathChoice::Sockmap, Some(promotion), downstream, upstream)
    }

    /// As [`Rig::promoted`], after a byte each way, so that the kernel has both directions.
    pub(crate) async fn in_kernel(promotion: Promotion) -> Self {
        let mut rig = Self::promoted(promotion).await;
        rig.app.write_all(b"?").await.unwrap();
        expect_text(&mut rig.server, b"?").await;
        rig.server.write_all(b"!").await.unwrap();
        expect_text(&mut rig.app, b"!").await;
        rig
    }

    /// Over two connections: app to relay and relay to server.
    pub(crate) fn over(
        path: PathChoice,
        downstream: (TcpStream, TcpStream),
        upstream: (TcpStream, TcpStream),
    ) -> Self {
        let promotion = match path {
            PathChoice::Sockmap => promotion(),
            _ => None,
        };
        Self::start(path, promotion, downstream, upstream)
    }

    fn start(
        path: PathChoice,
        promotion: Option<Promotion>,
        (app, downstream): (TcpStream, TcpStream),
        (upstream, server): (TcpStream, TcpStream),
    ) -> Self {
        let progress = Arc::default();
        let relay = Relay::new(Arc::clone(&progress), None).with_promotion(promotion);
        let ended = tokio::spawn(relay_and_close(relay, downstream, upstream, path));
        Self {
            app,
            server,
            progress,
            ended,
        }
    }
}

/// A stream that is not plain TCP, as far as the relay can tell.
pub(crate) struct Veiled<T>(pub(crate) T);

impl<T: AsyncRead + AsyncWrite + Unpin> Side for Veiled<T> {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Veiled<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Veiled<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What a connection does with its relay.
pub(crate) async fn relay_and_close(
    mut relay: Relay,
    mut downstream: TcpStream,
    mut upstream: TcpStream,
    path: PathChoice,
) -> Ended {
    let ended = relay.run(&mut downstream, &mut upstream, path).await;
    if ended.must_reset() {
        reset(downstream);
        reset(upstream);
    }
    ended
}

/// A connected pair: who connected, who accepted.
pub(crate) async fn connected(buffers: Option<u32>) -> (TcpStream, TcpStream) {
    let socket = || {
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = buffers {
            socket.set_send_buffer_size(bytes).unwrap();
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket
    };
    let listening = socket();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = listening.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let connecting = socket().connect(address);
    let (connecting, accepted) = tokio::join!(connecting, listener.accept());
    let (connecting, (accepted, _)) = (connecting.unwrap(), accepted.unwrap());
    for stream in [&connecting, &accepted] {
        stream.set_nodelay(true).unwrap();
        SockRef::from(stream).set_out_of_band_inline(true).unwrap();
    }
    (connecting, accepted)
}

/// Resolves when the peer has acknowledged everything.
pub(crate) async fn acknowledged(stream: &TcpStream) {
    while socket::unacknowledged(stream).unwrap() > 0 {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Has a connection send `old` again, with `new` behind it: see [`repair::resend`].
pub(crate) async fn resend(stream: TcpStream, old: &[u8], new: &[u8]) -> TcpStream {
    acknowledged(&stream).await;
    let stream = repair::resend(stream.into_std().unwrap(), old, new).unwrap();
    stream.set_nonblocking(true).unwrap();
    TcpStream::from_std(stream).unwrap()
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

/// Reads until the stream fails, which it must do by reset.
pub(crate) async fn expect_reset(stream: &mut TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => panic!("an end of stream instead of a reset"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
                return;
            }
        }
    }
}
