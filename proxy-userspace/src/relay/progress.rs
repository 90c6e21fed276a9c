//! What one connection has moved so far, and by which path: for records, and for whoever watches.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use proxy_common::Sent;

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
#[derive(Debug, Default)]
pub struct Progress {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
    pub(super) spliced: AtomicU64,
    pub(super) in_kernel: AtomicU64,
    pub(super) promotions: AtomicU32,
    pub(super) demotions: AtomicU32,
    pub(super) repairs: AtomicU32,
    pub(super) path: AtomicU8,
    pub(super) shortcut: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) on_shortcut: AtomicBool,
    pub(super) both_ways: AtomicBool,
    pub(super) left_shortcut: AtomicBool,
}

impl Progress {
    /// Bytes taken from downstream and accepted by upstream.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.relayed_up().wrapping_add(self.shortcut())
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
        self.down.load(Relaxed).wrapping_add(self.replies())
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
        self.in_kernel.load(Relaxed)
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
        self.repairs.load(Relaxed)
    }

    /// Whether it left the shortcut because the app streams.
    #[must_use]
    pub fn left_shortcut(&self) -> bool {
        self.left_shortcut.load(Relaxed)
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
        self.shortcut.store(sent.bytes, Relaxed);
    }

    pub(super) fn set_replies(&self, bytes: u64) {
        self.replies.store(bytes, Relaxed);
    }

    pub(super) fn set_path(&self, path: Path) {
        self.path.store(path as u8, Relaxed);
    }

    /// Changes with every byte that moves.
    pub(super) fn total(&self) -> u64 {
        self.up().wrapping_add(self.down())
    }
}
