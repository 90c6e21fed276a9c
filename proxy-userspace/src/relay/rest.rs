//! Rest: a relay whose work the kernel has taken over is not woken by that.
//!
//! Bytes that a program sends elsewhere also wake whoever polls their socket for reading, for nothing
//! (`sk_psock_verdict_data_ready()` in `net/core/skmsg.c`, which cannot know where the program sent them). Of a small exchange
//! that is a seventh of the work, and a fifth where replies go straight into the app's queue. So when nothing has come through
//! the relay for a while, it polls those sockets for writing only. Bytes do not wake such a poll, but an end or an error does,
//! whatever is polled for (`sock_def_wakeup()` in `net/core/sock.c`; on a socket that has no room to write, once it has). The
//! kernel rings a [`Bell`] when it passes a reply to the relay after all, and wakes whom a redirect has registered.

use std::{
    future::poll_fn,
    io, mem,
    net::TcpStream as StdTcpStream,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    task::{Context, Poll, ready},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::shortcut::Lane;
use crate::socket;

/// How long nothing must have come through a relay before it rests: it takes some system calls to lie down and get up.
const PATIENCE: Duration = Duration::from_millis(5);

/// Wakes a relay that rests.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    sleeper: AtomicWaker,
}

impl Bell {
    /// The kernel has passed a reply to the relay.
    pub fn ring(&self) {
        self.rung.store(true, Release);
        self.sleeper.wake();
    }

    pub(crate) fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        self.sleeper.register(cx.waker());
        if self.rung.swap(false, AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Tells when nothing has come through a relay for a while.
#[derive(Debug)]
pub(super) struct Quiet {
    timer: Pin<Box<Sleep>>,
    /// Reads of the relay when that began.
    reads: u32,
}

impl Quiet {
    pub(super) fn new(reads: u32) -> Self {
        Self {
            timer: Box::pin(sleep(PATIENCE)),
            reads,
        }
    }

    /// Resolves after a while, to whether the relay has read nothing in it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reads: u32) -> Poll<bool> {
        ready!(Future::poll(self.timer.as_mut(), cx));
        self.timer.as_mut().reset(Instant::now() + PATIENCE);
        let before = mem::replace(&mut self.reads, reads);
        Poll::Ready(before == reads)
    }
}

/// A socket whose bytes wake nobody.
pub(super) struct Resting {
    socket: AsyncFd<StdTcpStream>,
}

impl Resting {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        let stream = stream.into_std()?;
        // SAFETY: a `TcpStream` of the standard library owns its descriptor, and `AsyncFd` the stream.
        let socket = unsafe { AsyncFd::register_with_interest(stream, Interest::WRITABLE) }?;
        Ok(Self { socket })
    }

    /// Resolves when the stream has ended or failed, or bytes wait.
    pub(super) fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // Cleared before the look, so that what comes during it is not missed.
            ready!(self.socket.poll_write_ready(cx))?.clear_ready();
            if socket::has_news(self)? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    pub(super) fn get_up(self) -> io::Result<TcpStream> {
        TcpStream::from_std(self.socket.into_inner())
    }
}

impl AsFd for Resting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Waits while replies go past the relay: until one of its sides has something else to say, or the kernel passes a reply, of
/// which `relayed` bytes went through the relay so far.
pub(super) async fn from_replies(
    lane: &Lane,
    relayed: u64,
    downstream: &TcpStream,
    upstream: TcpStream,
) -> io::Result<TcpStream> {
    let Some(bell) = lane.bell().filter(|_| lane.begin_rest().is_ok()) else {
        return Ok(upstream);
    };
    let resting = Resting::new(upstream)?;
    // What the kernel passed before it knew that we rest wakes nobody. It counts that under the socket's lock, which this
    // waits for.
    socket::unread(&resting)?;
    if lane.passed()? == relayed {
        tokio::select! {
            () = poll_fn(|cx| bell.poll_rung(cx)) => {}
            changed = poll_fn(|cx| resting.poll_changed(cx)) => changed?,
            // Whatever it is, the relay will meet it.
            _ = downstream.readable() => {}
        }
    }
    resting.get_up()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    async fn resting() -> (Resting, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (connecting, accepted) = tokio::join!(connecting, listener.accept());
        (
            Resting::new(connecting.unwrap()).unwrap(),
            accepted.unwrap().0,
        )
    }

    #[tokio::test]
    async fn bytes_do_not_wake_and_the_end_does() {
        let (resting, mut peer) = resting().await;
        let changed = async {
            // The socket was writable when it lay down, and has had its look.
            timeout(
                Duration::from_millis(50),
                poll_fn(|cx| resting.poll_changed(cx)),
            )
            .await
            .unwrap_err();
            peer.write_all(b"unheard").await.unwrap();
            timeout(
                Duration::from_millis(50),
                poll_fn(|cx| resting.poll_changed(cx)),
            )
            .await
            .unwrap_err();
            drop(peer);
            poll_fn(|cx| resting.poll_changed(cx)).await.unwrap();
        };
        timeout(Duration::from_secs(10), changed).await.unwrap();
        let mut all = Vec::new();
        resting
            .get_up()
            .unwrap()
            .read_to_end(&mut all)
            .await
            .unwrap();
        assert_eq!(all, b"unheard");
    }

    #[tokio::test]
    async fn a_bell_wakes_also_who_comes_later() {
        let bell = Arc::new(Bell::default());
        let ringer = Arc::clone(&bell);
        tokio::spawn(async move { ringer.ring() });
        poll_fn(|cx| bell.poll_rung(cx)).await;
        bell.ring();
        poll_fn(|cx| bell.poll_rung(cx)).await;
        let again = timeout(Duration::from_millis(10), poll_fn(|cx| bell.poll_rung(cx))).await;
        assert!(again.is_err(), "rung once");
    }

    #[tokio::test]
    async fn it_is_quiet_when_nothing_comes_through_the_relay() {
        let mut quiet = Quiet::new(7);
        let begun = Instant::now();
        assert!(
            !poll_fn(|cx| quiet.poll(cx, 8)).await,
            "a read in the first"
        );
        assert!(poll_fn(|cx| quiet.poll(cx, 8)).await);
        assert!(begun.elapsed() >= 2 * PATIENCE);
    }
}
