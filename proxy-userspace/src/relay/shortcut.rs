//! The shortcut path: the app's own socket sends straight into the upstream socket, in the kernel.
//!
//! The relay goes on as on the path that `auto` chooses, with whatever still comes over its own connection to the app: all replies,
//! and those of the app's bytes that may not or cannot take the shortcut. All it adds is to say, after each turn, how many
//! of the app's bytes upstream has accepted. The kernel lets a piece take the shortcut only when that is as many as the
//! app ever sent over the relay's connection, so that nothing is overtaken; there is no mode to switch and no barrier
//! to wait for. A piece that takes the shortcut is in the upstream socket before the app's `send()` returns, hence
//! before the app can say that it has finished.
//!
//! Nor do streams, for long. An upload fills the upstream socket, and then each piece costs the program on top of the way
//! through the relay; small pieces in a row cost it more than the relay, which gathers them. Such a connection leaves the
//! shortcut for good, and its app's socket is as it would be without one.
//!
//! Replies take it only where the rule says `shortcut-both-ways`: see [`replies`]. The kernel keeps such bytes apart from
//! those that came by TCP, and then `splice()` finds nothing and closing with unread bytes sends no reset. An app that
//! depends on these cannot be told from others.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use proxy_common::{Lane as State, LaneKey, Sent, standing};
use tokio::net::TcpStream;

use super::{
    Progress,
    meter::Meter,
    replies::{self, Replies},
    rest::Bell,
};
use crate::rule::PathChoice;

/// What the shortcut needs of the kernel. A connection of an app is named by its record's key.
pub trait Shortcuts: Send + Sync {
    /// Opens the lane from an app's socket to an upstream socket, of which `relayed` bytes of the app were accepted.
    ///
    /// # Errors
    /// When the kernel does not take the upstream socket (another program's sockmap has it), or a map is full.
    fn open(&self, app: LaneKey, upstream: &TcpStream, relayed: u32) -> io::Result<()>;

    /// Says how far the relay is.
    ///
    /// # Errors
    /// When the map cannot be written.
    fn advance(&self, app: LaneKey, lane: State) -> io::Result<()>;

    /// What the app sent while the lane was open.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn sent(&self, app: LaneKey) -> io::Result<Sent>;

    /// Closes the lane and returns what the app's socket sent while it was open. Gives the socket back to plain TCP, with
    /// which what waits in its queue goes, unless it is to be kept.
    ///
    /// # Errors
    /// When the maps cannot be written.
    fn close(&self, app: LaneKey, keeps_app: bool) -> io::Result<Sent>;

    /// Lets replies that arrive on the upstream socket go straight into the app's receive queue. What waits on the socket
    /// is handled as if it arrived now. To be called when the relay has written nothing to the app.
    ///
    /// # Errors
    /// When the kernel does not take the upstream socket, or a map is full.
    fn open_replies(&self, app: LaneKey, upstream: &TcpStream) -> io::Result<Arc<dyn Replies>>;
}

/// What the self-test found out about this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All of it holds.
    Whole,
    /// All but one: `ioctl(FIONREAD)` tells apps that nothing waits for them.
    ///
    /// So in stable kernels since 6.6.128, 6.12.75 and 6.18.14 that have 929e30f93125 ("bpf, sockmap: Fix FIONREAD for
    /// sockmap") but not its fix, 04af4efde58a.
    WithoutFionread,
    /// The named test failed, or could not be made.
    Failed(&'static str),
}

/// What the self-test found out about this kernel, both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proofs {
    /// Apps' sockets sending past the relay.
    pub requests: Proof,
    /// Replies past the relay: the test that failed, or could not be made.
    pub replies: Result<(), &'static str>,
}

/// Why a connection whose rule asks for the shortcut is not on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The self-test failed on this kernel.
    Kernel,
    /// This kernel breaks `FIONREAD` for apps on the shortcut, and the rule does not say that they can do without.
    Fionread,
    /// The app's socket speaks MPTCP.
    Mptcp,
    /// The app's socket asked for completions (`SO_ZEROCOPY`).
    Zerocopy,
    /// The app's socket is not `O_NONBLOCK`, and its `recv()` would give up too early.
    Blocking,
    /// The app's socket was on the shortcut before, in another connection.
    Reused,
    /// The kernel refused the app's socket.
    App,
    /// Bytes do not leave by the upstream socket as the app sends them (TLS).
    Encrypted,
    /// The kernel refused the upstream socket.
    Upstream,
    /// The app sends more than upstream takes at once, or many small pieces in a row: the relay does that better, once
    /// the app's socket is out of the map.
    Stream,
    /// Requests take it and replies do not: their self-test failed on this kernel, or it refused the upstream socket.
    Replies,
}

impl Obstacle {
    /// The stable name in close records.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Fionread => "fionread",
            Self::Mptcp => "mptcp",
            Self::Zerocopy => "zerocopy",
            Self::Blocking => "blocking",
            Self::Reused => "reused",
            Self::App => "app_socket",
            Self::Encrypted => "encrypted",
            Self::Upstream => "upstream_socket",
            Self::Stream => "stream",
            Self::Replies => "replies",
        }
    }
}

impl Proofs {
    /// Whether there is nothing that could come out better another time.
    #[must_use]
    pub const fn have_passed(&self) -> bool {
        !matches!(self.requests, Proof::Failed(_)) && self.replies.is_ok()
    }
}

impl Proof {
    /// Whether a rule with this path may use the shortcut on this kernel.
    ///
    /// # Errors
    /// What stands in the way. A rule that does not ask for it may not use it either, and nothing is in its way.
    pub const fn allows(self, path: PathChoice) -> Result<bool, Obstacle> {
        match (path, self) {
            (PathChoice::Auto | PathChoice::Copy | PathChoice::Splice | PathChoice::Sockmap, _) => {
                Ok(false)
            }
            (_, Self::Failed(_)) => Err(Obstacle::Kernel),
            (PathChoice::AutoOrShortcut | PathChoice::Shortcut, Self::WithoutFionread) => {
                Err(Obstacle::Fionread)
            }
            (
                PathChoice::AutoOrShortcut
                | PathChoice::Shortcut
                | PathChoice::ShortcutWithoutFionread
                | PathChoice::ShortcutBothWays,
                _,
            ) => Ok(true),
        }
    }
}

/// What the hooks found of an app's socket, for a rule that may use the shortcut.
///
/// # Errors
/// What keeps it off.
pub const fn of_app(standing: u32) -> Result<(), Obstacle> {
    match standing {
        standing::READY => Ok(()),
        standing::MPTCP => Err(Obstacle::Mptcp),
        standing::ZEROCOPY => Err(Obstacle::Zerocopy),
        standing::BLOCKING => Err(Obstacle::Blocking),
        standing::REUSED => Err(Obstacle::Reused),
        standing::UNASKED => Err(Obstacle::Kernel),
        _ => Err(Obstacle::App),
    }
}

/// Bytes that may come through the relay before it is asked whether more than these took the shortcut.
const FAIR_SHARE: u64 = 256 * 1024;

/// An open lane of one connection. It closes when dropped, or for good when the app streams.
pub struct Lane {
    kernel: Arc<dyn Shortcuts>,
    app: LaneKey,
    progress: Arc<Progress>,
    told: AtomicU32,
    rests: AtomicU32,
    is_open: AtomicBool,
    replies: Option<Arc<dyn Replies>>,
    /// Bytes through the relay when its share was last looked at.
    seen_relayed: AtomicU64,
    /// Bytes by the shortcut then.
    seen_shortcut: AtomicU64,
}

impl Lane {
    /// Opens it, for a connection on which `progress` was made.
    ///
    /// # Errors
    /// As [`Shortcuts::open`].
    pub fn open(
        kernel: Arc<dyn Shortcuts>,
        app: LaneKey,
        upstream: &TcpStream,
        progress: Arc<Progress>,
    ) -> io::Result<Self> {
        let relayed = progress.relayed_up();
        kernel.open(app, upstream, modulo(relayed))?;
        progress.on_shortcut.store(true, Relaxed);
        Ok(Self {
            kernel,
            app,
            progress,
            told: AtomicU32::new(modulo(relayed)),
            rests: AtomicU32::new(0),
            is_open: AtomicBool::new(true),
            replies: None,
            seen_relayed: AtomicU64::new(relayed),
            seen_shortcut: AtomicU64::new(0),
        })
    }

    /// Lets whoever looks at the progress see what goes past the relay.
    pub(super) fn show(&self) {
        self.progress.measure_by(Meter::Lane {
            kernel: Arc::clone(&self.kernel),
            app: self.app,
            replies: self.replies.as_ref().map(Arc::downgrade),
        });
    }

    /// Lets replies go past the relay as well.
    ///
    /// # Errors
    /// As [`Shortcuts::open_replies`].
    pub fn open_replies(&mut self, upstream: &TcpStream) -> io::Result<()> {
        self.replies = Some(self.kernel.open_replies(self.app, upstream)?);
        self.progress.both_ways.store(true, Relaxed);
        Ok(())
    }

    /// The replies that go past the relay.
    pub(super) fn replies(&self) -> Option<Arc<dyn Replies>> {
        self.replies.clone()
    }

    /// Resolves when the app has read what went past the relay.
    pub async fn until_read(&self) {
        if let Some(replies) = &self.replies {
            replies::until_read(&**replies).await;
        }
    }

    /// Tells the kernel how far the relay is, if that is news.
    pub(super) fn advance(&self) {
        let relayed = modulo(self.progress.relayed_up());
        if self.told.load(Relaxed) == relayed || !self.is_open.load(Relaxed) {
            return;
        }
        if self.is_stream() {
            self.close();
            self.progress.left_shortcut.store(true, Relaxed);
        } else if self.tell(relayed, self.rests.load(Relaxed)).is_ok() {
            self.told.store(relayed, Relaxed);
        }
        // A kernel that was not told keeps the app on the relay's connection, and is told after the next turn.
    }

    /// From now on the kernel rings the bell when it passes a reply to the relay.
    pub(super) fn begin_rest(&self) -> io::Result<()> {
        let rests = self.rests.load(Relaxed).wrapping_add(1);
        self.tell(self.told.load(Relaxed), rests)?;
        self.rests.store(rests, Relaxed);
        Ok(())
    }

    /// Whether the kernel would ring for a relay that rests.
    pub(super) fn bell(&self) -> Option<&Bell> {
        let replies = self.replies.as_ref().filter(|_| self.is_open.load(Relaxed));
        replies?.bell()
    }

    /// Bytes of replies that the kernel has passed to the relay.
    pub(super) fn passed(&self) -> io::Result<u64> {
        let state = self.replies.as_ref().map(|replies| replies.state());
        Ok(state.transpose()?.map_or(0, |state| state.passed))
    }

    fn tell(&self, relayed: u32, rests: u32) -> io::Result<()> {
        self.kernel.advance(self.app, State { relayed, rests })
    }

    /// Counts what took the shortcut as progress.
    pub(super) fn report(&self) {
        if self.is_open.load(Relaxed)
            && let Ok(sent) = self.kernel.sent(self.app)
        {
            self.progress.set_shortcut(&sent);
        }
        if let Some(replies) = &self.replies {
            replies::report(&**replies, &self.progress);
        }
    }

    /// Whether much comes through the relay, and less than that took the shortcut meanwhile.
    fn is_stream(&self) -> bool {
        let relayed = self.progress.relayed_up();
        let by_relay = relayed - self.seen_relayed.load(Relaxed);
        if by_relay < FAIR_SHARE {
            return false;
        }
        self.report();
        self.seen_relayed.store(relayed, Relaxed);
        let shortcut = self.progress.shortcut();
        shortcut - self.seen_shortcut.swap(shortcut, Relaxed) < by_relay
    }

    fn close(&self) {
        if !self.is_open.swap(false, Relaxed) {
            return;
        }
        if let Some(replies) = &self.replies {
            replies::report(&**replies, &self.progress);
        }
        match self.kernel.close(self.app, self.replies.is_some()) {
            Ok(sent) => self.progress.set_shortcut(&sent),
            Err(error) => tracing::warn!(%error, "a lane of the shortcut stays open"),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("app", &self.app)
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

/// As TCP counts.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the sequence numbers it is compared with wrap in the same way"
)]
const fn modulo(bytes: u64) -> u32 {
    bytes as u32
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;

    const APP: LaneKey = LaneKey {
        cookie: 1,
        connect_ns: 2,
    };

    /// Notes what it is told, and says that so many bytes took the shortcut.
    #[derive(Default)]
    struct Kernel {
        told: Mutex<Vec<u32>>,
        sent: AtomicU64,
        closed: AtomicU32,
    }

    impl Shortcuts for Kernel {
        fn open(&self, app: LaneKey, _: &TcpStream, relayed: u32) -> io::Result<()> {
            self.advance(app, State { relayed, rests: 0 })
        }

        fn advance(&self, app: LaneKey, lane: State) -> io::Result<()> {
            assert_eq!(app, APP);
            self.told.lock().unwrap().push(lane.relayed);
            Ok(())
        }

        fn sent(&self, _: LaneKey) -> io::Result<Sent> {
            Ok(Sent {
                bytes: self.sent.load(Relaxed),
                ..Sent::default()
            })
        }

        fn close(&self, app: LaneKey, _: bool) -> io::Result<Sent> {
            self.closed.fetch_add(1, Relaxed);
            self.sent(app)
        }

        fn open_replies(&self, _: LaneKey, _: &TcpStream) -> io::Result<Arc<dyn Replies>> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    async fn opened(kernel: &Arc<Kernel>, progress: &Arc<Progress>) -> Lane {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let kernel: Arc<Kernel> = Arc::clone(kernel);
        Lane::open(kernel, APP, &upstream, Arc::clone(progress)).unwrap()
    }

    #[tokio::test]
    async fn the_kernel_is_told_what_is_news_and_the_end_once() {
        let (kernel, progress) = (Arc::<Kernel>::default(), Arc::<Progress>::default());
        progress.up.store((1 << 32) + 7, Relaxed);
        let lane = opened(&kernel, &progress).await;
        lane.advance();
        progress.up.fetch_add(3, Relaxed);
        lane.advance();
        lane.advance();
        assert_eq!(*kernel.told.lock().unwrap(), [7, 10]);
        kernel.sent.store(500, Relaxed);
        lane.report();
        assert_eq!(progress.up(), (1 << 32) + 10 + 500);
        drop(lane);
        assert_eq!(kernel.closed.load(Relaxed), 1);
        assert!(!progress.left_shortcut());
    }

    #[tokio::test]
    async fn the_lane_of_a_stream_closes() {
        let (kernel, progress) = (Arc::<Kernel>::default(), Arc::<Progress>::default());
        let lane = opened(&kernel, &progress).await;
        kernel.sent.store(FAIR_SHARE, Relaxed);
        progress.up.fetch_add(FAIR_SHARE, Relaxed);
        lane.advance();
        assert!(!progress.left_shortcut(), "as much took the shortcut");
        progress.up.fetch_add(FAIR_SHARE, Relaxed);
        lane.advance();
        assert!(progress.left_shortcut(), "nothing more took the shortcut");
        progress.up.fetch_add(1, Relaxed);
        lane.advance();
        drop(lane);
        assert_eq!(kernel.closed.load(Relaxed), 1);
        assert_eq!(progress.up(), 3 * FAIR_SHARE + 1);
    }

    #[test]
    fn a_rule_gets_what_the_kernel_keeps() {
        use PathChoice::{Copy, Shortcut, ShortcutWithoutFionread};
        let failed = Proof::Failed("order");
        assert_eq!(Proof::Whole.allows(Copy), Ok(false));
        assert_eq!(failed.allows(Copy), Ok(false));
        assert_eq!(Proof::Whole.allows(Shortcut), Ok(true));
        assert_eq!(Proof::Whole.allows(ShortcutWithoutFionread), Ok(true));
        assert_eq!(
            Proof::WithoutFionread.allows(Shortcut),
            Err(Obstacle::Fionread)
        );
        assert_eq!(
            Proof::WithoutFionread.allows(ShortcutWithoutFionread),
            Ok(true)
        );
        assert_eq!(
            failed.allows(ShortcutWithoutFionread),
            Err(Obstacle::Kernel)
        );
    }
}
