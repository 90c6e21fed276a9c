//! What a connection is used for, told from what moves: the cheapest path depends on it.

use super::Progress;

/// How a connection is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Small pieces, mostly requests and responses.
    Messages,
    /// Requests and responses of many kilobytes.
    Blocks,
    /// Much, one way.
    Bulk,
}

impl Kind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Messages, Self::Blocks, Self::Bulk];

    /// The stable name in reports.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Blocks => "blocks",
            Self::Bulk => "bulk",
        }
    }

    /// By what moved, in so many reads and turns of the conversation.
    const fn of(bytes: u64, reads: u32, turns: u32) -> Self {
        let reads = if reads == 0 { 1 } else { reads };
        if bytes / (reads as u64) < SMALL_READ {
            Self::Messages
        } else if bytes / (turns as u64 + 1) < LONG_TURN {
            Self::Blocks
        } else {
            Self::Bulk
        }
    }
}

/// After how much a connection is judged, and judged again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// So many bytes,
    pub(super) bytes: u64,
    /// or so many reads, of both sides.
    pub(super) reads: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            bytes: 256 * 1024,
            // Eight exchanges of messages.
            reads: 16,
        }
    }
}

/// Reads that bring less on average make messages.
const SMALL_READ: u64 = 8 * 1024;
/// More bytes than these one way before the other answers, on average, make bulk.
const LONG_TURN: u64 = 128 * 1024;

/// What makes a kind steady: so many windows in a row in which only one side speaks. So begins a transfer, too, as long as the
/// congestion window is small.
const STEADY: u8 = 16;
/// For so many counts one in which both do: two are enough. The first one alone may be a greeting before a transfer.
const OF_CONVERSATION: u8 = STEADY / 2;
/// Turns in a window from which on both sides speak.
const CONVERSATION: u32 = 2;

/// Watches one connection. It is judged window by window, and its kind changes only when two windows in a row agree: a
/// single large answer makes no bulk, and nothing flaps.
#[derive(Debug)]
pub(super) struct Watch {
    /// Bytes each way at the last look.
    seen: [u64; 2],
    /// Bytes of both, and reads, when the window began.
    began: (u64, u32),
    /// Times that the other side spoke.
    turns: u32,
    /// Who spoke last: an index of `seen`.
    speaker: u8,
    kind: Option<Kind>,
    /// What the last window was, where it was not `kind`.
    doubt: Option<Kind>,
    /// Windows in a row that were the same, as they count for [`STEADY`].
    agreeing: u8,
}

impl Watch {
    /// From here on.
    pub(super) fn new(progress: &Progress, reads: u32) -> Self {
        let seen = [progress.not_sent_past(), progress.down()];
        Self {
            began: (seen[0].wrapping_add(seen[1]), reads),
            seen,
            turns: 0,
            speaker: 0,
            kind: None,
            doubt: None,
            agreeing: 0,
        }
    }

    /// Whether enough windows say the same to do what cannot be undone.
    pub(super) fn is_steady(&self) -> bool {
        self.agreeing >= STEADY
    }

    /// To be called after each turn of work. Returns the kind at the end of each window.
    pub(super) fn look(
        &mut self,
        window: &Window,
        progress: &Progress,
        reads: u32,
    ) -> Option<Kind> {
        let now = [progress.not_sent_past(), progress.down()];
        for (side, (now, seen)) in (0..).zip(now.iter().zip(self.seen)) {
            if *now != seen && side != self.speaker {
                self.speaker = side;
                self.turns += 1;
            }
        }
        self.seen = now;
        let total = now[0].wrapping_add(now[1]);
        let bytes = total.wrapping_sub(self.began.0);
        let reads_made = reads.wrapping_sub(self.began.1);
        if bytes < window.bytes && reads_made < window.reads {
            return None;
        }
        let judged = Kind::of(bytes, reads_made, self.turns);
        let counts = if self.turns >= CONVERSATION {
            OF_CONVERSATION
        } else {
            1
        };
        (self.began, self.turns) = ((total, reads), 0);
        // What the window before was: the doubt, or without one the kind.
        let is_same = self.doubt.or(self.kind) == Some(judged);
        self.agreeing = if is_same {
            self.agreeing.saturating_add(counts)
        } else {
            counts
        };
        if self.kind.is_none() || self.doubt == Some(judged) {
            self.kind = Some(judged);
        }
        self.doubt = (self.kind != Some(judged)).then_some(judged);
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    /// A connection of which a script says what moves.
    struct Script {
        progress: Progress,
        reads: u32,
        watch: Watch,
    }

    impl Script {
        fn new() -> Self {
            let progress = Progress::default();
            let watch = Watch::new(&progress, 0);
            Self {
                progress,
                reads: 0,
                watch,
            }
        }

        fn up(&mut self, bytes: u64) -> Option<Kind> {
            self.progress.up.fetch_add(bytes, Relaxed);
            self.reads += 1;
            self.watch
                .look(&Window::default(), &self.progress, self.reads)
        }

        fn down(&mut self, bytes: u64) -> Option<Kind> {
            self.progress.down.fetch_add(bytes, Relaxed);
            self.reads += 1;
            self.watch
                .look(&Window::default(), &self.progress, self.reads)
        }

        /// The kinds of the windows that such exchanges make.
        fn exchanges(&mut self, count: u32, up: u64, down: u64) -> Vec<Kind> {
            let mut kinds = Vec::new();
            for _ in 0..count {
                kinds.extend(self.up(up));
                kinds.extend(self.down(down));
            }
            kinds
        }
    }

    #[test]
    fn a_short_connection_is_not_judged() {
        let mut script = Script::new();
        assert_eq!(script.exchanges(7, 300, 14_000), []);
    }

    #[test]
    fn small_exchanges_are_messages() {
        assert_eq!(Script::new().exchanges(8, 64, 64), [Kind::Messages]);
        assert_eq!(Script::new().exchanges(8, 200, 9000), [Kind::Messages]);
    }

    #[test]
    fn a_trickle_one_way_is_messages() {
        let mut script = Script::new();
        let kinds: Vec<_> = (0..16).filter_map(|_| script.up(500)).collect();
        assert_eq!(kinds, [Kind::Messages]);
    }

    #[test]
    fn large_exchanges_are_blocks() {
        let kinds = Script::new().exchanges(8, 64 << 10, 64 << 10);
        assert_eq!(kinds, [Kind::Blocks; 4]);
    }

    #[test]
    fn a_transfer_is_bulk_each_way() {
        let mut script = Script::new();
        assert_eq!(script.up(200), None);
        let down: Vec<_> = (0..20).filter_map(|_| script.down(64 << 10)).collect();
        assert_eq!(down, [Kind::Bulk; 5]);
        let mut script = Script::new();
        let up: Vec<_> = (0..8).filter_map(|_| script.up(64 << 10)).collect();
        assert_eq!(up, [Kind::Bulk; 2]);
    }

    #[test]
    fn a_greeting_before_a_transfer_is_not_steady() {
        let mut script = Script::new();
        script.exchanges(2, 100, 100);
        let first = (0..8).find_map(|_| script.up(64 << 10));
        assert_eq!(first, Some(Kind::Blocks));
        assert!(!script.watch.is_steady());
        let more: Vec<_> = (0..8).filter_map(|_| script.up(64 << 10)).collect();
        assert_eq!(more.last(), Some(&Kind::Bulk));
        assert!(!script.watch.is_steady());
        script.exchanges(8, 64 << 10, 64 << 10);
        assert!(script.watch.is_steady(), "a conversation");
    }

    #[test]
    fn a_transfer_that_begins_slowly_is_not_steady_as_messages() {
        let mut script = Script::new();
        script.exchanges(1, 17, 1);
        let slow: Vec<_> = (0..64).filter_map(|_| script.up(5792)).collect();
        assert_eq!(slow, [Kind::Messages; 4]);
        assert!(!script.watch.is_steady());
        let fast: Vec<_> = (0..16).filter_map(|_| script.up(64 << 10)).collect();
        assert_eq!(fast.last(), Some(&Kind::Bulk));
        let trickle: Vec<_> = (0..320).filter_map(|_| script.down(500)).collect();
        assert_eq!(trickle.last(), Some(&Kind::Messages));
        assert!(script.watch.is_steady(), "it never was any faster");
    }

    #[test]
    fn one_large_answer_makes_no_bulk_and_two_in_a_row_do() {
        let mut script = Script::new();
        assert_eq!(script.exchanges(8, 64, 64), [Kind::Messages]);
        assert_eq!(script.down(300 << 10), Some(Kind::Messages));
        assert_eq!(script.exchanges(8, 64, 64), [Kind::Messages]);
        assert_eq!(script.down(300 << 10), Some(Kind::Messages));
        assert_eq!(script.down(300 << 10), Some(Kind::Bulk));
        assert_eq!(script.exchanges(8, 64, 64), [Kind::Bulk]);
        assert_eq!(script.exchanges(8, 64, 64), [Kind::Messages]);
    }
}
