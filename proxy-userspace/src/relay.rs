//! Moves the bytes of one connection both ways, until both sides have finished or one of them fails.
//!
//! It owns what is in flight: bytes read from one side and not yet taken by the other, half-close, the byte counts and
//! the idle timeout. It makes no socket, sets no address and never closes: `connection` brings two connected streams
//! and acts on the [`Ended`] it gets back.
//!
//! There is one state machine per direction (`direction`), and a path is a way for it to take bytes: `copy` reads into a
//! buffer all connections of a thread share, `splice` moves what waits in bulk through a kernel pipe, `sockmap` has the
//! kernel redirect what arrives. A connection starts on `copy` and may be admitted to `sockmap` later. The `shortcut` is
//! no further one: the app's own socket sends past the relay, and with `shortcut-both-ways` small replies come past it,
//! while it copies what is left to it. All state sits in
//! [`Relay`] and none in a future, so dropping a future at any await loses nothing and another path can go on.
//!
//! `auto` is a choice among these (`steer`): a connection that lasts is told by what moves ([`Kind`]) and put on the path that
//! is cheapest for its kind on this machine ([`Calibration`], which [`measure()`] makes). Until both are known it is copied.
//!
//! What the two apps observe, which is what they would observe without a relay:
//! - The end of a stream is passed on behind its last byte, and the other direction goes on.
//! - A reset overtakes no byte that was sent before it and that the other side takes at once: who refuses an upload
//!   by an answer and a reset gets the answer through. What else is in flight is dropped, in both directions, because
//!   reset means abort (RFC 9293 section 3.5). The surviving side gets a reset as well, never an end of stream that
//!   would make a truncated reply look whole.
//! - Urgent data stays in its place in the stream, as ordinary bytes.

mod accelerate;
mod calibration;
mod copy;
mod direction;
mod kind;
mod measure;
mod meter;
mod passage;
mod paths;
mod pipe;
mod progress;
mod reason;
mod receive;
pub mod replies;
pub mod rest;
pub mod shortcut;
mod sockmap;
mod splice;
mod steer;

use std::{
    future::{Future, pending, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};

pub use self::{
    accelerate::{Accelerator, Pair, Promotion, Redirect, Refusal, Worth},
    calibration::{COMPARED, Calibration, Times},
    kind::Kind,
    measure::measure,
    paths::Paths,
    progress::{Path, Progress},
    reason::Reason,
    sockmap::{FIRST_WINDOW, MOST_WINDOW},
};
use self::{
    direction::{Direction, Fault},
    replies::ReplyPassage,
    rest::{Quiet, Resting},
    shortcut::Lane,
    steer::Steering,
};
use crate::{close::CloseReason, rule::PathChoice};

/// How many times per idle timeout the counters are looked at.
const IDLE_LOOKS: u32 = 4;

/// How long a reset waits for what the kernel has redirected, which may find no room.
const LAST_MOMENT: Duration = Duration::from_millis(50);
/// How long it waits for replies past the relay: there is room for them, so it is only for a worker of the kernel's to
/// get its turn.
const WORKER_PATIENCE: Duration = Duration::from_secs(1);

/// One side of a connection.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The TCP socket itself, where bytes read from it are the bytes of the stream (no TLS, nothing buffered above it).
    ///
    /// The kernel then tells how much waits, and can move bytes without user space.
    fn plain(&self) -> Option<&TcpStream>;
}

impl Side for TcpStream {
    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// How a relay ended.
#[derive(Debug)]
pub struct Ended {
    /// Why; one of `Done`, `DownstreamReset`, `UpstreamReset` and `IdleTimeout`.
    pub reason: CloseReason,
    /// The first error a side reported, where one did.
    pub first_error: Option<io::Error>,
}

impl Ended {
    /// Whether both sockets are to be closed by reset (`SO_LINGER` 0), without a farewell of a layer above TCP.
    ///
    /// Otherwise both sides have been told the end of their stream, or the last of them is by dropping its socket. The side that
    /// failed is dead already, so resetting it too does nothing.
    #[must_use]
    pub fn must_reset(&self) -> bool {
        self.reason != CloseReason::Done
    }
}

/// The bytes in flight of one connection, both ways.
#[derive(Debug)]
pub struct Relay {
    up: Direction,
    down: Direction,
    progress: Arc<Progress>,
    idle_timeout: Option<Duration>,
    steering: Steering,
    lane: Option<Arc<Lane>>,
    /// Since when nothing has come through it, where it may rest.
    quiet: Option<Quiet>,
}

impl Relay {
    /// A relay that has moved nothing yet.
    ///
    /// With an `idle_timeout`, a connection on which no byte moved for that long (up to a quarter longer) is ended. A
    /// change of path counts as a byte.
    #[must_use]
    pub fn new(progress: Arc<Progress>, idle_timeout: Option<Duration>) -> Self {
        Self {
            up: Direction::default(),
            down: Direction::default(),
            progress,
            idle_timeout,
            steering: Steering::default(),
            lane: None,
            quiet: None,
        }
    }

    /// Lets [`PathChoice::Sockmap`] hand the connection to the kernel, and [`PathChoice::Auto`] choose; otherwise they mean
    /// `copy`.
    #[must_use]
    pub fn with_paths(mut self, paths: Arc<Paths>) -> Self {
        self.steering.allow(paths);
        self
    }

    /// As [`Relay::with_paths`] with nothing known but the kernel side of the sockmap path.
    #[must_use]
    pub fn with_promotion(self, promotion: Option<Promotion>) -> Self {
        let Some(promotion) = promotion else {
            return self;
        };
        let paths = Paths::default();
        paths.set_sockmap(Ok(promotion));
        self.with_paths(Arc::new(paths))
    }

    /// Lets the app send past the relay, which keeps the kernel informed, until the relay is dropped.
    pub fn take_shortcut(&mut self, lane: Lane) {
        lane.show();
        // The sockets are open until the app has read what went past the relay.
        self.tell_each_end();
        if let Some(replies) = lane.replies() {
            self.down.take_passage(Box::new(ReplyPassage::new(replies)));
        }
        self.lane = Some(Arc::new(lane));
    }

    /// Has the relay tell both sides the end of their streams. Otherwise the last one is told by closing its socket, for which
    /// [`socket::end_orderly`](crate::socket::end_orderly) has to be called.
    pub fn tell_each_end(&mut self) {
        self.up.tell_each_end();
        self.down.tell_each_end();
    }

    /// Resolves when the app has read what the kernel put into its queue, or has not in an idle timeout. To be awaited
    /// after an orderly end: what is unread is lost when this process ends.
    pub async fn until_read(&self) {
        let read = async {
            if let Some(lane) = &self.lane {
                lane.until_read().await;
            }
        };
        match self.idle_timeout {
            Some(idle_timeout) => _ = timeout(idle_timeout, read).await,
            None => read.await,
        }
    }

    /// Relays by the path a rule asks for, until the end. May be dropped at any await and be followed by any path, but sockets
    /// that are in the sockmap stay there.
    pub fn run<D: Side, U: Side>(
        &mut self,
        downstream: &mut D,
        upstream: &mut U,
        choice: PathChoice,
    ) -> impl Future<Output = Ended> {
        self.steering.may_rest = false;
        self.begin(choice, downstream, upstream);
        self.relay(downstream, upstream)
    }

    /// Relays until the end.
    async fn relay<D: Side, U: Side>(&mut self, downstream: &mut D, upstream: &mut U) -> Ended {
        loop {
            if let Some(ended) = self.turn(downstream, upstream).await {
                return ended;
            }
        }
    }

    /// Relays like [`Relay::run`], and rests while the kernel does all the work. Returns the sockets unless they were lost; and
    /// so they are when this is dropped.
    pub async fn run_or_rest(
        &mut self,
        mut downstream: TcpStream,
        mut upstream: TcpStream,
        choice: PathChoice,
    ) -> (Ended, Option<(TcpStream, TcpStream)>) {
        self.steering.may_rest = true;
        self.begin(choice, &downstream, &upstream);
        loop {
            if let Some(ended) = self.turn(&mut downstream, &mut upstream).await {
                return (ended, Some((downstream, upstream)));
            }
            // Boxed: who rests has time, and the others would have to hold it.
            let rested = Box::pin(self.rest(downstream, upstream));
            (downstream, upstream) = match rested.await {
                Ok(sockets) => sockets,
                Err(ended) => return (ended, None),
            };
        }
    }

    /// Waits until there is something to do again, and is not woken by what goes past it.
    async fn rest(
        &mut self,
        downstream: TcpStream,
        upstream: TcpStream,
    ) -> Result<(TcpStream, TcpStream), Ended> {
        let progress = Arc::clone(&self.progress);
        let lane = self.lane.clone();
        let idle_timeout = self.idle_timeout;
        tokio::select! {
            rested = self.lie_down(downstream, upstream) => rested,
            () = silence(&progress, lane.as_deref(), idle_timeout) => Err(idle()),
        }
    }

    async fn lie_down(
        &mut self,
        downstream: TcpStream,
        upstream: TcpStream,
    ) -> Result<(TcpStream, TcpStream), Ended> {
        let lost = |reason| move |error| aborted(reason, error);
        if let Some(lane) = &self.lane {
            let relayed = self.progress.relayed_down();
            let upstream = rest::from_replies(lane, relayed, &downstream, upstream)
                .await
                .map_err(lost(CloseReason::UpstreamReset))?;
            return Ok((downstream, upstream));
        }
        let downstream = Resting::new(downstream).map_err(lost(CloseReason::DownstreamReset))?;
        let upstream = Resting::new(upstream).map_err(lost(CloseReason::UpstreamReset))?;
        poll_fn(|cx| {
            let up = self.up.poll_work(cx, &downstream, &upstream);
            let down = self.down.poll_work(cx, &upstream, &downstream);
            self.count();
            if up.is_ready() || down.is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let downstream = downstream.get_up();
        Ok((
            downstream.map_err(lost(CloseReason::DownstreamReset))?,
            upstream
                .get_up()
                .map_err(lost(CloseReason::UpstreamReset))?,
        ))
    }

    /// Takes the path to begin with, and decides what may become of it.
    fn begin<D: Side, U: Side>(&mut self, choice: PathChoice, downstream: &D, upstream: &U) {
        let path = match choice {
            PathChoice::Auto | PathChoice::AutoOrShortcut => self.begin_auto(),
            // What leaves the shortcut is a stream, for which there may be something better than copying.
            PathChoice::Shortcut | PathChoice::ShortcutWithoutFionread if self.lane.is_some() => {
                self.begin_auto()
            }
            PathChoice::Copy
            | PathChoice::Shortcut
            | PathChoice::ShortcutWithoutFionread
            | PathChoice::ShortcutBothWays => {
                self.steering.stay(Reason::Rule);
                Path::Copy
            }
            PathChoice::Splice if downstream.plain().is_some() && upstream.plain().is_some() => {
                self.steering.stay(Reason::Rule);
                Path::Splice
            }
            PathChoice::Splice => {
                self.steering.stay(Reason::Refused(Refusal::NotPlain));
                Path::Copy
            }
            PathChoice::Sockmap => {
                let path = self.first_path();
                self.steering.await_promotion(path);
                path
            }
        };
        self.take_path(path);
    }

    fn begin_auto(&mut self) -> Path {
        let reads = self.reads();
        self.steering.follow(&self.progress, reads);
        self.first_path()
    }

    /// Relays until the end, or until the relay may rest.
    async fn turn<D: Side, U: Side>(
        &mut self,
        downstream: &mut D,
        upstream: &mut U,
    ) -> Option<Ended> {
        let progress = Arc::clone(&self.progress);
        let lane = self.lane.clone();
        let mut silence = pin!(silence(&progress, lane.as_deref(), self.idle_timeout));
        let ended = poll_fn(|cx| {
            let moved = self.poll_move(cx, downstream, upstream);
            self.count();
            if let Poll::Ready(ended) = moved {
                return Poll::Ready(Some(ended));
            }
            if self.steer(downstream, upstream) {
                // Again, to read both until nothing is left: then the kernel may take over.
                cx.waker().wake_by_ref();
            }
            if self.poll_rest(cx).is_ready() {
                return Poll::Ready(None);
            }
            silence.as_mut().poll(cx).map(|()| Some(idle()))
        })
        .await?;
        if ended.must_reset() && self.down.passage().is_some() {
            // Boxed: it is rare, and every connection would have to hold it.
            Box::pin(self.let_arrive(downstream, upstream)).await;
        }
        Some(ended)
    }

    /// Resolves when the relay may rest.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.steering.may_rest && self.is_spared() {
            let reads = self.reads();
            let quiet = self.quiet.get_or_insert_with(|| Quiet::new(reads));
            if ready!(quiet.poll(cx, reads)) {
                return Poll::Ready(());
            }
        }
        self.quiet = None;
        Poll::Pending
    }

    /// Whether all that comes goes past the relay, which would hear of anything else.
    fn is_spared(&self) -> bool {
        match &self.lane {
            Some(lane) => lane.bell().is_some() && self.up.waits() && self.down.waits(),
            None => self.up.is_spared() && self.down.is_spared(),
        }
    }

    /// Gives what the kernel redirected before a side failed the moment it takes to reach the other side's socket.
    async fn let_arrive<D: Side, U: Side>(&mut self, downstream: &D, upstream: &U) {
        let arrived = poll_fn(|cx| {
            let up = self.up.poll_settled(cx, upstream);
            let down = self.down.poll_settled(cx, downstream);
            // An error means that the side is gone, and then there is nothing to wait for.
            if up.is_ready() && down.is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let patience = if self.lane.is_some() {
            WORKER_PATIENCE
        } else {
            LAST_MOMENT
        };
        _ = timeout(patience, arrived).await;
    }

    fn take_path(&mut self, path: Path) {
        self.up.take_path(path);
        self.down.take_path(path);
        self.progress.set_path(path);
    }

    fn poll_move<D: Side, U: Side>(
        &mut self,
        cx: &mut Context<'_>,
        downstream: &mut D,
        upstream: &mut U,
    ) -> Poll<Ended> {
        let told = self.down.has_told_end();
        let counted = &self.progress.up;
        let up = self.up.poll(cx, downstream, upstream, told, counted);
        if let Some(lane) = &self.lane {
            // Before the answer goes out, so that what the app sends next finds the kernel informed.
            lane.advance();
        }
        if let Poll::Ready(Err(fault)) = up {
            let (reason, error) = match fault {
                Fault::Source(error) => (CloseReason::DownstreamReset, error),
                Fault::Sink(error) => {
                    let counted = &self.progress.down;
                    self.down.pass_last_words(cx, upstream, downstream, counted);
                    (CloseReason::UpstreamReset, error)
                }
            };
            return Poll::Ready(aborted(reason, error));
        }
        let told = self.up.has_told_end();
        let counted = &self.progress.down;
        let down = self.down.poll(cx, upstream, downstream, told, counted);
        if let Poll::Ready(Err(fault)) = down {
            let (reason, error) = match fault {
                Fault::Source(error) => (CloseReason::UpstreamReset, error),
                Fault::Sink(error) => {
                    let counted = &self.progress.up;
                    self.up.pass_last_words(cx, downstream, upstream, counted);
                    (CloseReason::DownstreamReset, error)
                }
            };
            return Poll::Ready(aborted(reason, error));
        }
        if self.progress.relay_path() == Path::Splice
            && (self.up.fell_back() || self.down.fell_back())
        {
            self.take_path(Path::Copy);
            self.steering.no_splice();
        }
        ready!(up).ok();
        ready!(down).ok();
        Poll::Ready(Ended {
            reason: CloseReason::Done,
            first_error: None,
        })
    }
}

fn aborted(reason: CloseReason, error: io::Error) -> Ended {
    Ended {
        reason,
        first_error: Some(error),
    }
}

fn idle() -> Ended {
    Ended {
        reason: CloseReason::IdleTimeout,
        first_error: None,
    }
}

/// Resolves when no byte has moved for `timeout`. Looks at the counters now and then, so that a byte costs nothing.
async fn silence(progress: &Progress, lane: Option<&Lane>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else {
        return pending().await;
    };
    let mut seen = progress.total();
    let mut quiet_looks = 0;
    while quiet_looks < IDLE_LOOKS {
        sleep(timeout / IDLE_LOOKS).await;
        if let Some(lane) = lane {
            lane.report();
        }
        let total = progress.total();
        quiet_looks = if total == seen { quiet_looks + 1 } else { 0 };
        seen = total;
    }
}
