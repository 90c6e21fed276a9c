//! What the kernel remembers of an intercepted connection.

use crate::{Addr, BePort, LaneKey, MAX_RULES};

/// Which rule of which policy.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// [`Policy::generation`](crate::Policy::generation) that decided.
    pub generation: u32,
    /// Index in that generation's rules.
    pub index: u32,
}

impl RuleRef {
    /// Slots of two generations of rules.
    pub const SLOTS: u32 = 2 * RULES;

    /// Where the action of the rule is, among those of two generations.
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self) -> u32 {
        (self.generation % 2) * RULES + self.index
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const RULES: u32 = MAX_RULES as u32;

/// An intercepted connection as the relay needs to know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When `connect()` was called, nanoseconds of `CLOCK_MONOTONIC`.
    pub connect_ns: u64,
    /// Network namespace of the socket (`bpf_get_netns_cookie`, kernel 5.7).
    pub netns_cookie: u64,
    /// Cgroup of the connecting task.
    pub cgroup_id: u64,
    /// Where the app wanted to connect.
    pub orig_addr: Addr,
    /// Port the app wanted to connect to.
    pub orig_port: BePort,
    /// [`Family`](crate::Family) of the app's socket; an IPv6 socket may have an IPv4-mapped destination.
    pub family: u16,
    /// Thread group id ("process id") in the initial pid namespace.
    pub pid: u32,
    /// Real user id (`bpf_get_current_uid_gid` tells the real ones).
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// The rule that selected the connection.
    pub rule: RuleRef,
    /// The number of the app's socket (`bpf_get_socket_cookie`).
    pub cookie: u64,
    /// A [`standing`](crate::standing).
    pub shortcut: u32,
    /// Always 0.
    pub reserved: u32,
    /// `comm` of the connecting task, padded with 0: what is left to show when the process is already gone.
    pub comm: [u8; 16],
}

impl Record {
    /// By what the maps of the shortcut know the connection.
    #[inline(always)]
    #[must_use]
    pub const fn lane(&self) -> LaneKey {
        LaneKey {
            cookie: self.cookie,
            connect_ns: self.connect_ns,
        }
    }
}

/// How the relay finds the record of a connection it accepted: by the tuple it sees.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordKey {
    /// Loopback tuples repeat in every network namespace.
    pub netns_cookie: u64,
    /// Source address of the app's socket.
    pub source: Addr,
    /// Source port of the app's socket.
    pub source_port: BePort,
    /// Port of the listener it was sent to.
    pub listener_port: BePort,
    /// Always 0.
    pub reserved: u32,
}

/// A connection of the daemon itself, as whoever receives it sees it: it is not intercepted again where it arrives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnKey {
    /// Address of the daemon's socket.
    pub source: Addr,
    /// Where it connects.
    pub dest: Addr,
    /// Port of the daemon's socket.
    pub source_port: BePort,
    /// Port it connects to.
    pub dest_port: BePort,
}

/// What hangs on a socket itself (`BPF_MAP_TYPE_SK_STORAGE`, kernel 5.2): it dies with the socket, so nothing
/// can leak, and it follows the socket through `dup`, `fork` and `SCM_RIGHTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// A [`role`].
    pub role: u32,
    /// Port of the listener, or of the endpoint, that the socket was sent to.
    pub listener_port: BePort,
    /// [`Family`](crate::Family) of that listener.
    pub listener_family: u16,
    /// TCP sequence number of the first byte that the app sends; set with the source port.
    pub first_seq: u32,
    /// 1 once the socket was in the map [`APPS`](crate::names::APPS), also if in an earlier connection.
    pub admitted: u32,
    /// Number of the endpoint; meaningful for [`role::REWRITTEN`], as what follows.
    pub endpoint: u32,
    /// 1 from the hook that chose the endpoint to the guard behind it.
    pub passed: u32,
    /// Address of the endpoint.
    pub peer: Addr,
    /// The connection; meaningful for [`role::INTERCEPTED`], and its original destination for [`role::REWRITTEN`].
    pub record: Record,
}

/// What a [`Socket`] is to us.
pub mod role {
    /// An app's connection that goes to the relay.
    pub const INTERCEPTED: u32 = 1;
    /// An app's connection that goes to an endpoint which the hook chose.
    pub const REWRITTEN: u32 = 2;
}
