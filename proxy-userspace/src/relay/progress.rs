//! What one connection has moved so far, and by which path: for records, and for whoever watches.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use proxy_common::{Replies, Sent};

use super::{Reason, meter::Meter};

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Through a user-space buffer.
    Copy,
    /// Through a kernel pipe when much waits.
    Splice,
    /// Redirected in the kernel from socket to socket.
    Sockmap,
    /// The app's own socket sends into the upstream socket; replies, and what may not take that way, are copied.
    Shortcut,
    /// And small replies go straight into the app's receive queue.
    BothWays,
}

impl Path {
    /// Every path, in the order of their discriminants.
    pub const ALL: [Self; 5] = [
        Self::Copy,
        Self::Splice,
        Self::Sockmap,
        Self::Shortcut,
        Self::BothWays,
    ];

    /// The stable name in logs, records and counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Shortcut => "shortcut",
            Self::BothWays => "shortcut-both-ways",
        }
    }
}

/// What one connection has moved so far; to be read by anybody while the relay runs.
#[derive(Default)]
pub struct Progress {
    /// Through the relay, as what follows is past it.
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
    pub(super) spliced: AtomicU64,
    pub(super) redirected_up: AtomicU64,
    pub(super) redirected_down: AtomicU64,
    pub(super) promotions: AtomicU32,
    pub(super) demotions: AtomicU32,
    pub(super) repairs: AtomicU32,
    pub(super) path: AtomicU8,
    pub(super) shortcut: AtomicU64,
    pub(super) replies: AtomicU64,
    /// Those of [`Progress::repairs`] that were of replies.
    reply_repairs: AtomicU32,
    pub(super) on_shortcut: AtomicBool,
    pub(super) both_ways: AtomicBool,
    pub(super) left_shortcut: AtomicBool,
    /// A [`Reason::number`].
    pub(super) reason: AtomicU8,
    /// One that stays, whatever becomes of the other.
    obstacle: AtomicU8,
    /// Boxed: most connections have none, and every one would have to hold it.
    meter: OnceLock<Box<Meter>>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Progress")
            .field("up", &self.up())
            .field("down", &self.down())
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// Bytes taken from downstream and accepted by upstream.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.not_sent_past().wrapping_add(self.shortcut())
    }

    /// Those of [`Progress::up`] that came over the relay's own connection to the app, whoever moved them on.
    pub(super) fn not_sent_past(&self) -> u64 {
        let redirected = self.redirected_up.load(Relaxed);
        self.relayed_up().wrapping_add(redirected)
    }

    /// Brings up to date what the kernel moves by itself. Costs nobody anything but whoever calls it.
    pub fn look(&self) {
        if let Some(meter) = self.meter.get() {
            meter.read(self);
        }
    }

    /// Those of [`Progress::up`] that the app's own socket sent to upstream. Brought up to date now and then, and at the
    /// end of the connection.
    #[must_use]
    pub fn shortcut(&self) -> u64 {
        self.shortcut.load(Relaxed)
    }

    /// Bytes taken from upstream and accepted by downstream.
    #[must_use]
    pub fn down(&self) -> u64 {
        self.relayed_down()
            .wrapping_add(self.redirected_down.load(Relaxed))
            .wrapping_add(self.replies())
    }

    /// Those of [`Progress::down`] that the kernel put into the app's receive queue past the relay. Brought up to date as
    /// [`Progress::shortcut`].
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.replies.load(Relaxed)
    }

    /// Bytes, up and down, that the kernel redirected from socket to socket.
    #[must_use]
    pub fn in_kernel(&self) -> u64 {
        let [up, down] = [&self.redirected_up, &self.redirected_down];
        up.load(Relaxed).wrapping_add(down.load(Relaxed))
    }

    /// Bytes, up and down, that went by a path; those of [`Path::BothWays`] are the replies, as the requests went by the shortcut.
    /// Together they are [`Progress::up`] and [`Progress::down`].
    #[must_use]
    pub fn by(&self, path: Path) -> u64 {
        match path {
            Path::Copy => Path::ALL
                .into_iter()
                .filter(|path| *path != Path::Copy)
                .fold(self.total(), |left, path| {
                    left.saturating_sub(self.by(path))
                }),
            Path::Splice => self.spliced.load(Relaxed),
            Path::Sockmap => self.in_kernel(),
            Path::Shortcut => self.shortcut(),
            Path::BothWays => self.replies(),
        }
    }

    /// Times that a direction was given to a better path than copying.
    #[must_use]
    pub fn promotions(&self) -> u32 {
        self.promotions.load(Relaxed)
    }

    /// Times that a direction came back from there.
    #[must_use]
    pub fn demotions(&self) -> u32 {
        self.demotions.load(Relaxed)
    }

    /// Times that the kernel would have delivered bytes twice.
    #[must_use]
    pub fn repairs(&self) -> u32 {
        self.repairs.load(Relaxed) + self.reply_repairs.load(Relaxed)
    }

    /// Whether it left the shortcut because the app streams.
    #[must_use]
    pub fn left_shortcut(&self) -> bool {
        self.left_shortcut.load(Relaxed)
    }

    /// Why it is not on a better path than it is.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let known = [&self.obstacle, &self.reason];
        known
            .into_iter()
            .find_map(|number| Reason::from_number(number.load(Relaxed)))
    }

    /// Whatever becomes of it, this is why it is not on a better path.
    pub fn hold_back(&self, reason: Reason) {
        self.obstacle.store(reason.number(), Relaxed);
    }

    /// From now on the kernel moves bytes by itself.
    pub(super) fn measure_by(&self, meter: Meter) {
        // A connection takes one such path in its life.
        _ = self.meter.set(Box::new(meter));
    }

    /// The path in use.
    #[must_use]
    pub fn path(&self) -> Path {
        if self.on_shortcut.load(Relaxed) && !self.left_shortcut() {
            let both_ways = self.both_ways.load(Relaxed);
            return if both_ways {
                Path::BothWays
            } else {
                Path::Shortcut
            };
        }
        self.relay_path()
    }

    /// The path of what goes through the relay.
    pub(super) fn relay_path(&self) -> Path {
        let number = usize::from(self.path.load(Relaxed));
        Path::ALL.get(number).copied().unwrap_or(Path::Copy)
    }

    /// Those of [`Progress::down`] that went through the relay.
    pub(super) fn relayed_down(&self) -> u64 {
        self.down.load(Relaxed)
    }

    /// Those of [`Progress::up`] that went through the relay.
    pub(super) fn relayed_up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    pub(super) fn set_shortcut(&self, sent: &Sent) {
        self.shortcut.fetch_max(sent.bytes, Relaxed);
    }

    pub(super) fn set_replies(&self, state: &Replies) {
        self.replies.fetch_max(state.redirected, Relaxed);
        self.reply_repairs
            .fetch_max(state.sequence.repairs, Relaxed);
    }

    pub(super) fn set_path(&self, path: Path) {
        self.path.store(path as u8, Relaxed);
    }

    /// Changes with every byte that moves.
    pub(super) fn total(&self) -> u64 {
        self.up().wrapping_add(self.down())
    }
}
