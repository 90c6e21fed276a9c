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
    /// Every reason.
    const ALL: [Self; 24] = [
        Self::Rule,
        Self::Short,
        Self::Unmeasured,
        Self::Measured,
        Self::SelfTest,
        Self::Refused(Refusal::Off),
        Self::Refused(Refusal::NotPlain),
        Self::Refused(Refusal::Full),
        Self::Refused(Refusal::Budget),
        Self::Refused(Refusal::Socket),
        Self::NoSplice,
        Self::SlowReceiver,
        Self::Entered,
        Self::Shortcut(Obstacle::Kernel),
        Self::Shortcut(Obstacle::Fionread),
        Self::Shortcut(Obstacle::Mptcp),
        Self::Shortcut(Obstacle::Zerocopy),
        Self::Shortcut(Obstacle::Blocking),
        Self::Shortcut(Obstacle::Reused),
        Self::Shortcut(Obstacle::App),
        Self::Shortcut(Obstacle::Encrypted),
        Self::Shortcut(Obstacle::Upstream),
        Self::Shortcut(Obstacle::Stream),
        Self::Shortcut(Obstacle::Replies),
    ];

    /// A number of its own, which is not 0: that stands for no reason.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Rule => 1,
            Self::Short => 2,
            Self::Unmeasured => 3,
            Self::Measured => 4,
            Self::SelfTest => 5,
            Self::Refused(refusal) => 6 + refusal as u8,
            Self::NoSplice => 11,
            Self::SlowReceiver => 12,
            Self::Entered => 13,
            Self::Shortcut(obstacle) => 14 + obstacle as u8,
        }
    }

    /// The reason of a number.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_number() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_number(reason.number()), Some(reason));
        }
        assert_eq!(Reason::from_number(0), None);
        assert_eq!(Reason::from_number(25), None);
    }
}
