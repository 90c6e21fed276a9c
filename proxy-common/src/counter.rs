//! What the hooks count. Every way a hook can end has a counter.

use crate::RuleRef;

/// Index into the per-CPU counter array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// TCP connects seen.
    Seen = 0,
    /// No rule, or a rule that says direct.
    Direct,
    /// A rule that says refuse.
    Refused,
    /// Sent to the relay.
    Relayed,
    /// The daemon's own connections, let through.
    Own,
    /// Connects to one of our listeners; the relay resets them.
    Loop,
    /// Relay dead or hung; the rule's fail mode was applied.
    FailHeartbeat,
    /// Socket in another network namespace than the listeners; fail mode.
    FailNetns,
    /// No listener of the socket's family; fail mode.
    FailFamily,
    /// Record table full; fail mode.
    FailFull,
    /// No memory for the socket's storage; fail mode.
    FailMemory,
    /// The socket is bound to a device other than loopback and could not be freed of it; fail mode.
    FailDevice,
    /// Fail modes that let the connection go direct.
    FailedDirect,
    /// Fail modes that refused the connection.
    FailedRefused,
    /// Refused by the pinned guard.
    GuardRefused,
    /// Records published for the relay.
    Published,
    /// Records that found no room after the redirect; the relay resets those connections.
    Unpublished,
    /// Records removed because their socket closed before the relay took them.
    Withdrawn,
    /// TCP connections seen where they arrive; a repeated SYN counts again.
    Arrived,
    /// Of those, the daemon's own, let through.
    ArrivedOwn,
    /// Of those, refused by a rule that says refuse.
    ArrivedRefused,
    /// Of those, given to the relay.
    ArrivedRelayed,
    /// Of those, given to the listener of a service.
    ArrivedSteered,
    /// The relay had no listener to give it to; fail mode.
    FailListener,
    /// The daemon's own connections that found no room in the table of those, and cannot be told from others.
    Unregistered,
    /// What arrived while that table had no room; fail mode.
    FailOwn,
    /// Sent to an endpoint by the hook itself.
    Rewritten,
    /// SYNs passing through that a rule selects; a repeated one counts again.
    Transit,
    /// Of those, refused by a rule that says refuse.
    TransitRefused,
    /// Of those, given to the relay.
    TransitRelayed,
    /// Packets of relayed connections that are over, answered by a reset.
    TransitReset,
    /// Packets that the pinned guard did not let pass.
    TransitHeld,
    /// Packets that the fast path sent on.
    Fast,
    /// Packets that it left to the kernel, as all below: with options, or parts of one.
    SlowOptions,
    /// Their lifetime ends here.
    SlowExpiring,
    /// Larger than the way lets through.
    SlowTooBig,
    /// For this host, for many, or without a route.
    SlowNotForwarded,
    /// By a route that says that there is none.
    SlowUnreachable,
    /// To a neighbour that is not known.
    SlowNeighbour,
    /// To an interface that is not of the fast path, or back to the one they came by.
    SlowElsewhere,
    /// From where no answer would go.
    SlowSource,
    /// Not IP, marked, in a VLAN, for another host of the link, or malformed.
    SlowOther,
}

/// Every counter with its stable name, in index order.
pub const COUNTERS: [(Counter, &str); 42] = [
    (Counter::Seen, "seen"),
    (Counter::Direct, "direct"),
    (Counter::Refused, "refused"),
    (Counter::Relayed, "relayed"),
    (Counter::Own, "own"),
    (Counter::Loop, "loop"),
    (Counter::FailHeartbeat, "fail_heartbeat"),
    (Counter::FailNetns, "fail_netns"),
    (Counter::FailFamily, "fail_family"),
    (Counter::FailFull, "fail_full"),
    (Counter::FailMemory, "fail_memory"),
    (Counter::FailDevice, "fail_device"),
    (Counter::FailedDirect, "failed_direct"),
    (Counter::FailedRefused, "failed_refused"),
    (Counter::GuardRefused, "guard_refused"),
    (Counter::Published, "published"),
    (Counter::Unpublished, "unpublished"),
    (Counter::Withdrawn, "withdrawn"),
    (Counter::Arrived, "arrived"),
    (Counter::ArrivedOwn, "arrived_own"),
    (Counter::ArrivedRefused, "arrived_refused"),
    (Counter::ArrivedRelayed, "arrived_relayed"),
    (Counter::ArrivedSteered, "arrived_steered"),
    (Counter::FailListener, "fail_listener"),
    (Counter::Unregistered, "unregistered"),
    (Counter::FailOwn, "fail_own"),
    (Counter::Rewritten, "rewritten"),
    (Counter::Transit, "transit"),
    (Counter::TransitRefused, "transit_refused"),
    (Counter::TransitRelayed, "transit_relayed"),
    (Counter::TransitReset, "transit_reset"),
    (Counter::TransitHeld, "transit_held"),
    (Counter::Fast, "fast"),
    (Counter::SlowOptions, "slow_options"),
    (Counter::SlowExpiring, "slow_expiring"),
    (Counter::SlowTooBig, "slow_too_big"),
    (Counter::SlowNotForwarded, "slow_not_forwarded"),
    (Counter::SlowUnreachable, "slow_unreachable"),
    (Counter::SlowNeighbour, "slow_neighbour"),
    (Counter::SlowElsewhere, "slow_elsewhere"),
    (Counter::SlowSource, "slow_source"),
    (Counter::SlowOther, "slow_other"),
];

/// What a rule has done, and so which part of the per-CPU array of hits its slot is in.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hit {
    /// It selected a connection of a process of this host.
    Selected = 0,
    /// Of those, its fail mode was applied.
    Failed,
    /// It selected a connection that arrived; a repeated SYN counts again.
    Arrived,
    /// Of those, its fail mode was applied.
    ArrivedFailed,
    /// It selected a connection that passes through; a repeated SYN counts again.
    Passing,
    /// Of those, its fail mode was applied.
    PassingFailed,
}

impl Hit {
    /// Kinds of hits.
    pub const COUNT: u32 = 6;

    /// Where the hits of a kind are that a rule has.
    #[inline(always)]
    #[must_use]
    pub const fn index(self, rule: RuleRef) -> u32 {
        self as u32 * RuleRef::SLOTS + rule.slot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rules_share_their_hits() {
        let last = |generation| RuleRef {
            generation,
            index: RuleRef::SLOTS / 2 - 1,
        };
        let first = RuleRef::default();
        assert_eq!(Hit::Selected.index(first), 0);
        assert_eq!(Hit::Selected.index(last(1)) + 1, Hit::Failed.index(first));
        assert_eq!(
            Hit::PassingFailed.index(last(1)) + 1,
            Hit::COUNT * RuleRef::SLOTS
        );
    }

    #[test]
    fn names_stand_at_their_index() {
        for (index, (counter, _)) in COUNTERS.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
