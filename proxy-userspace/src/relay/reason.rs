//! Why a connection was not on a better path than it was.

use super::{Refusal, shortcut::Obstacle};

/// The reason in a close record. There is none where the connection was on the best path that is known for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The rule asks for just this path.
    Rule,
    /// It ended before it was worth another path.
    Short,
    /// What the paths cost here is not known yet.
    Unmeasured,
    /// Another path measures no better here.
    Measured,
    /// The self-test of the sockmap path failed here.
    SelfTest,
    /// The kernel side of the sockmap path did not take it.
    Refused(Refusal),
    /// There is no pipe to be had, or the kernel does not splice these sockets.
    NoSplice,
    /// Its receiver was too slow for the kernel to go on by itself when it ended.
    SlowReceiver,
    /// It is used otherwise than when it was put into the sockmap, which it cannot leave.
    Entered,
    /// The app's socket may not send past the relay.
    Shortcut(Obstacle),
}

impl Reason {
    /// The stable name in close records.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Short => "short",
            Self::Unmeasured => "unmeasured",
            Self::Measured => "measured",
            Self::SelfTest => "self_test",
            Self::Refused(Refusal::Off) => "off",
            Self::Refused(Refusal::NotPlain) => "not_plain",
            Self::Refused(Refusal::Full) => "full",
            Self::Refused(Refusal::Budget) => "budget",
            Self::Refused(Refusal::Socket) => "foreign_sockmap",
            Self::NoSplice => "no_splice",
            Self::SlowReceiver => "slow_receiver",
            Self::Entered => "entered_sockmap",
            Self::Shortcut(obstacle) => obstacle.label(),
        }
    }
}
