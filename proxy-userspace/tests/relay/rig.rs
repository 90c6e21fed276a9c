//! An app and a server with a relay between them, on loopback.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use proxy_userspace::{
    intercept::{Overlap, Redirects},
    relay::{COMPARED, Calibration, Ended, Path, Paths, Progress, Promotion, Relay, Side},
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
/// Longer than anything takes that only has to be noticed, also where packets are lost.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// How the relay of a test moves bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// As a rule asks for.
    By(PathChoice),
    /// By choice, where these paths were measured to be the best for messages, blocks and bulk, and connections are judged
    /// all the time, so that every change of what goes through them is a change of path.
    Best([Path; 3]),
}

/// Runs each test function named on each path, and with the paths changing.
macro_rules! on_each_path {
    (@by $module:ident $way:expr; $($test:ident)*) => {
        mod $module {
            #[allow(unused_imports, reason = "not every way names a path")]
            use proxy_userspace::{relay::Path::{Copy, Sockmap, Splice}, rule::PathChoice};
            $(#[tokio::test]
            async fn $test() {
                let way: crate::rig::Way = $way;
                if way.can_be_gone() {
                    crate::rig::in_time(super::$test(way)).await;
                }
            })*
        }
    };
    ($($test:ident),* $(,)?) => {
        on_each_path!(@by copy crate::rig::Way::By(PathChoice::Copy); $($test)*);
        on_each_path!(@by splice crate::rig::Way::By(PathChoice::Splice); $($test)*);
        on_each_path!(@by sockmap crate::rig::Way::By(PathChoice::Sockmap); $($test)*);
        on_each_path!(@by auto_splice crate::rig::Way::Best([Splice; 3]); $($test)*);
        on_each_path!(@by auto_sockmap crate::rig::Way::Best([Sockmap; 3]); $($test)*);
        on_each_path!(@by auto_in_and_out crate::rig::Way::Best([Copy, Splice, Copy]); $($test)*);
        on_each_path!(@by auto_all crate::rig::Way::Best([Splice, Copy, Sockmap]); $($test)*);
    };
}
pub(crate) use on_each_path;

/// Fails a test that hangs.
pub(crate) async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(PATIENCE, test).await.expect("the test hangs")
}

impl Way {
    /// Whether this process may load the program that it takes.
    pub(crate) fn can_be_gone(self) -> bool {
        let takes_program = match self {
            Self::By(choice) => choice == PathChoice::Sockmap,
            Self::Best(paths) => paths.contains(&Path::Sockmap),
        };
        !takes_program || promotion().is_some()
    }

    /// What a rule asks for.
    fn choice(self) -> PathChoice {
        match self {
            Self::By(choice) => choice,
            Self::Best(_) => PathChoice::Auto,
        }
    }

    /// A relay that goes this way.
    fn relay(self, progress: Arc<Progress>) -> Relay {
        let relay = Relay::new(progress, None);
        match self {
            Self::By(PathChoice::Sockmap) => relay.with_promotion(promotion()),
            Self::By(_) => relay,
            Self::Best(best) => {
                let paths = Paths::judging_after(1, 1);
                paths.set_sockmap(promotion().ok_or("privileges"));
                paths.set_measured(measured(best));
                relay.with_paths(Arc::new(paths))
            }
        }
    }
}

/// A measurement by which these paths are twice as good as the others, for messages, blocks and bulk.
pub(crate) fn measured(best: [Path; 3]) -> Calibration {
    let times = |path, best| {
        let micros = if path == best { 500 } else { 1000 };
        vec![Duration::from_micros(micros); 5]
    };
    Calibration::of(&best.map(|best| COMPARED.map(|path| times(path, best))))
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
    pub(crate) async fn new(way: Way) -> Self {
        Self::with_buffers(way, None).await
    }

    /// With all eight socket buffers of about `buffers` bytes.
    pub(crate) async fn with_buffers(way: Way, buffers: Option<u32>) -> Self {
        let (downstream, upstream) = (connected(buffers).await, connected(buffers).await);
        Self::over(way, downstream, upstream)
    }

    /// On the sockmap path, entered as this says.
    pub(crate) async fn promoted(promotion: Promotion) -> Self {
        let (downstream, upstream) = (connected(None).await, connected(None).await);
        let progress = Arc::default();
        let relay = Relay::new(Arc::clone(&progress), None).with_promotion(Some(promotion));
        Self::start(relay, progress, PathChoice::Sockmap, downstream, upstream)
    }

    /// Only the relay, on the sockmap path, entered as this says.
    pub(crate) fn relayed(
        promotion: Promotion,
        downstream: TcpStream,
        upstream: TcpStream,
    ) -> (Arc<Progress>, JoinHandle<Ended>) {
        let progress = Arc::<Progress>::default();
        let relay = Relay::new(Arc::clone(&progress), None).with_promotion(Some(promotion));
        let relaying = relay_and_close(relay, downstream, upstream, PathChoice::Sockmap);
        (progress, tokio::spawn(relaying))
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
        way: Way,
        downstream: (TcpStream, TcpStream),
        upstream: (TcpStream, TcpStream),
    ) -> Self {
        let progress = Arc::default();
        let relay = way.relay(Arc::clone(&progress));
        Self::start(relay, progress, way.choice(), downstream, upstream)
    }

    fn start(
        relay: Relay,
        progress: Arc<Progress>,
        path: PathChoice,
        (app, downstream): (TcpStream, TcpStream),
        (upstream, server): (TcpStream, TcpStream),
    ) -> Self {
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
    downstream: TcpStream,
    upstream: TcpStream,
    path: PathChoice,
) -> Ended {
    let (ended, sockets) = relay.run_or_rest(downstream, upstream, path).await;
    if let Some((downstream, upstream)) = sockets
        && ended.must_reset()
    {
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

/// Resolves when something is so, which no event tells of.
pub(crate) async fn await_that(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < SOON, "waited for {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Has a connection send `old` again, with `new` behind it: see [`repair::resend`].
pub(crate) async fn resend(stream: TcpStream, old: &[u8], new: &[u8]) -> TcpStream {
    acknowledged(&stream).await;
    let stream = repair::resend(stream.into_std().unwrap(), old, new, |_, _| Ok(())).unwrap();
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
