//! Keys and values of the policy maps.
//!
//! All tables hold the rules of several generations side by side: every key starts with the generation, and the
//! [`Policy`] header names the one in force. A reload writes the new generation, switches the header and removes
//! the old one, so a `connect()` sees one policy or the other, never a mixture.

use crate::{Addr, BePort, RuleSet};

/// Header of the policy in force; the one element of the map [`POLICY`](crate::names::POLICY).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Generation whose table entries are in force; 0 means no policy yet.
    pub generation: u32,
    /// Which tables any rule needs: a union of [`Dimensions`] bits. A table that no rule needs is not looked up.
    pub dimensions: u32,
    /// Bit `n`: some rule names a cgroup at depth `n` below the root of the hierarchy.
    pub cgroup_levels: u32,
    /// Always 0.
    pub reserved: u32,
    /// Rules without a `cgroup` alternative; they hold in any cgroup that is not excluded.
    pub any_cgroup: RuleSet,
    /// Rules without an `exe` alternative.
    pub any_exe: RuleSet,
    /// Rules without a `pid` alternative.
    pub any_pid: RuleSet,
    /// Rules for what arrives without an `interface` alternative.
    pub any_interface: RuleSet,
}

/// Bits of [`Policy::dimensions`].
pub struct Dimensions;

impl Dimensions {
    /// Some rule selects by port.
    pub const PORT: u32 = 1 << 0;
    /// Some rule selects by user id.
    pub const UID: u32 = 1 << 1;
    /// Some rule selects by group id.
    pub const GID: u32 = 1 << 2;
    /// Some rule selects by cgroup.
    pub const CGROUP: u32 = 1 << 3;
    /// Some rule selects by executable.
    pub const EXE: u32 = 1 << 4;
    /// Some rule selects by process.
    pub const PID: u32 = 1 << 5;
    /// There are rules for what arrives.
    pub const LISTEN: u32 = 1 << 6;
    /// Some of them select by source.
    pub const SOURCE: u32 = 1 << 7;
    /// Some of them select by interface.
    pub const INTERFACE: u32 = 1 << 8;
    /// There are rules for what passes through.
    pub const TRANSIT: u32 = 1 << 9;
    /// Some of them select by destination.
    pub const TRANSIT_DEST: u32 = 1 << 10;
    /// Some of them select by port.
    pub const TRANSIT_PORT: u32 = 1 << 11;
    /// Some of them select by source.
    pub const TRANSIT_SOURCE: u32 = 1 << 12;
    /// Some rules for what arrives listen on single addresses.
    pub const HOST: u32 = 1 << 13;
}

/// Data of a prefix in the LPM trie: of an address, or of a number, since a range of numbers is the union of the
/// prefixes that cover it. The prefix length counts the 64 bits of generation and kind too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey {
    /// [`Policy::generation`].
    pub generation: u32,
    /// A [`PrefixKind`].
    pub kind: u32,
    /// The address, or the number big-endian and then zeros.
    pub bits: Addr,
}

impl PrefixKey {
    /// Bits before [`PrefixKey::bits`].
    pub const HEAD_BITS: u32 = 64;
    /// Prefix length of a look-up: all of it.
    pub const FULL_BITS: u32 = Self::HEAD_BITS + 128;

    /// Of an address.
    #[inline(always)]
    #[must_use]
    pub const fn dest(generation: u32, addr: Addr) -> Self {
        Self {
            generation,
            kind: PrefixKind::DEST,
            bits: addr,
        }
    }

    /// Of a number.
    #[inline(always)]
    #[must_use]
    pub const fn number(generation: u32, kind: u32, value: u32) -> Self {
        Self {
            generation,
            kind,
            bits: Addr::from_words([value.to_be(), 0, 0, 0]),
        }
    }
}

/// What a [`PrefixKey`] is a prefix of.
pub struct PrefixKind;

impl PrefixKind {
    /// Destination addresses.
    pub const DEST: u32 = 1;
    /// Destination ports.
    pub const PORT: u32 = 2;
    /// Real user ids.
    pub const UID: u32 = 3;
    /// Real group ids.
    pub const GID: u32 = 4;
    /// Addresses that rules listen on; in a map of their own.
    pub const LISTEN: u32 = 5;
    /// Sources of what arrives.
    pub const SOURCE: u32 = 6;
    /// Destinations of what passes through.
    pub const TRANSIT_DEST: u32 = 7;
    /// Ports of those.
    pub const TRANSIT_PORT: u32 = 8;
    /// Sources of what passes through.
    pub const TRANSIT_SOURCE: u32 = 9;
}

/// Key of a cgroup, executable, process or interface in the membership table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberKey {
    /// [`Policy::generation`].
    pub generation: u32,
    /// A [`MemberKind`].
    pub kind: u32,
    /// Cgroup id, inode number, interface number, or the process id a rule names.
    pub id: u64,
    /// Device of the inode as the kernel's internal `dev_t`; otherwise 0.
    pub device: u64,
}

/// What a [`MemberKey`] names.
pub struct MemberKind;

impl MemberKind {
    /// A cgroup, by `bpf_get_current_ancestor_cgroup_id` (kernel 5.7).
    pub const CGROUP: u32 = 1;
    /// An executable, by inode and device.
    pub const EXE: u32 = 2;
    /// A process named by a rule, found through the map of its descendants.
    pub const PID: u32 = 3;
    /// An interface that connections arrive by.
    pub const INTERFACE: u32 = 4;
    /// An interface that connections pass through by.
    pub const TRANSIT_INTERFACE: u32 = 5;
}

/// Which rules name a cgroup, executable, process or interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Rules that have it as an alternative.
    pub include: RuleSet,
    /// Rules that exclude it.
    pub exclude: RuleSet,
}

/// What a rule does; element `generation % 2 * MAX_RULES + index` of the map [`ACTIONS`](crate::names::ACTIONS),
/// [`REVERSE_ACTIONS`](crate::names::REVERSE_ACTIONS) or [`TRANSIT_ACTIONS`](crate::names::TRANSIT_ACTIONS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// A [`verb`].
    pub verb: u32,
    /// A [`fail_mode`].
    pub on_relay_failure: u32,
    /// Whether connections may take the shortcut: 0 or 1.
    pub shortcut: u32,
    /// Number of the group whose endpoints the hook itself chooses from, as long as it can; 0 when it does not.
    pub group: u32,
    /// Whether the relay opens listeners in the network namespaces of those whom the rule selects: 0 or 1.
    pub spaces: u32,
}

impl Action {
    /// Whether nothing that the rule selects may pass without the relay.
    #[inline(always)]
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.verb != verb::DIRECT && self.on_relay_failure == fail_mode::REFUSE
    }
}

/// What an [`Action`] does with a connection.
pub mod verb {
    /// Nothing: the kernel connects the app's own socket.
    pub const DIRECT: u32 = 0;
    /// `connect()` fails.
    pub const REFUSE: u32 = 1;
    /// The connection goes to the relay.
    pub const RELAY: u32 = 2;
    /// What arrives is given to the listener of a service; to the relay, where that is not known.
    pub const STEER: u32 = 3;
}

/// What an [`Action`] does while the relay cannot answer.
pub mod fail_mode {
    /// The connection goes direct.
    pub const DIRECT: u32 = 0;
    /// `connect()` fails.
    pub const REFUSE: u32 = 1;
}

/// Where a relay listens; element of the map [`RELAY`](crate::names::RELAY).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    /// Cookie of the network namespace the listeners are in (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// Age of the heartbeat after which the relay counts as hung, in nanoseconds.
    pub heartbeat_timeout: u64,
    /// Port of the listeners on `127.0.0.1`; 0 when there is none.
    pub port_v4: BePort,
    /// Port of the listeners on `::1`; 0 when there is none.
    pub port_v6: BePort,
    /// The process that has taken over, which writes it here itself; 0 while there is none.
    pub successor: u32,
    /// The process itself, in the initial pid namespace, whose connections are not intercepted while it is alive; 0 where it does
    /// not know. Where that is not enough it marks each socket ([`OURS`](crate::names::OURS)).
    pub process: u32,
    /// Always 0.
    pub reserved: u32,
}

impl Relay {
    /// Where it listens in its own network namespace.
    #[inline(always)]
    #[must_use]
    pub const fn space(&self) -> Space {
        Space {
            port_v4: self.port_v4,
            port_v6: self.port_v6,
        }
    }

    /// Whether a destination is one of the listeners, in their network namespace.
    #[inline(always)]
    #[must_use]
    pub const fn listens_on(&self, addr: &Addr, port: BePort) -> bool {
        self.space().listens_on(addr, port)
    }
}

/// Where the relay listens in a network namespace that is not its own; element of the map [`SPACES`](crate::names::SPACES).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Port of the listeners on `127.0.0.1`; 0 when there is none.
    pub port_v4: BePort,
    /// Port of the listeners on `::1`; 0 when there is none.
    pub port_v6: BePort,
}

impl Space {
    /// Whether a destination in that namespace is one of the listeners.
    #[inline(always)]
    #[must_use]
    pub const fn listens_on(&self, addr: &Addr, port: BePort) -> bool {
        let listener = self.port(addr);
        port.0 == listener.0 && listener.0 != 0 && addr.is_loopback()
    }

    /// The port of the listeners of an address's family.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self, addr: &Addr) -> BePort {
        if addr.is_v4() {
            self.port_v4
        } else {
            self.port_v6
        }
    }
}

/// Network namespaces that the relay can listen in at a time.
pub const MAX_SPACES: usize = 4096;

/// Index into the map [`RELAY`](crate::names::RELAY).
pub mod relay {
    /// That of the daemon itself.
    pub const OWN: u32 = 0;
    /// That of the daemon whose place it takes, as long as that runs.
    pub const PREDECESSOR: u32 = 1;
    /// Whether one takes its place, from before that one attaches on: its network namespace, written by that one itself.
    pub const SUCCESSOR: u32 = 2;
    /// How many there are.
    pub const COUNT: usize = 3;
}

/// What the map [`OURS`](crate::names::OURS) says of a socket.
pub mod ours {
    use crate::{Addr, BePort};

    /// It is one of a daemon's own.
    pub const OWN: u32 = 1;

    /// It is an app's, and a daemon whose place is taken has sent it to an endpoint: its successor, which runs after it, leaves
    /// alone what goes there.
    #[inline(always)]
    #[must_use]
    pub const fn sent_to(addr: &Addr, port: BePort) -> u32 {
        let [a, b, c, d] = addr.words();
        let mixed = a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d.rotate_left(24);
        // Never `OWN`.
        mixed.wrapping_mul(0x9e37_79b1) ^ port.0 as u32 | 1 << 31
    }
}

/// Index into the map [`LISTENERS`](crate::names::LISTENERS).
pub mod listener {
    /// On `127.0.0.1`.
    pub const V4: u32 = 0;
    /// On `::1`.
    pub const V6: u32 = 1;
    /// How many there are.
    pub const COUNT: usize = 2;
}

/// Workers that listeners of the gateway can be of; each has two elements of the map [`GATES`](crate::names::GATES), in the order of
/// [`listener`].
pub const GATES: usize = 256;

/// What packets of connections that pass through are given; the one element of the map [`PASSAGE`](crate::names::PASSAGE).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// The mark that has them routed to this host whatever their destination; 0 before there is one.
    pub mark: u32,
    /// How many workers have listeners for them.
    pub gates: u32,
}

impl Passage {
    /// Whether a packet carries such a mark, of whichever daemon: they are numbers of routing tables with a byte to choose from.
    #[inline(always)]
    #[must_use]
    pub const fn is_mark(mark: u32) -> bool {
        mark & !0xff == 0x6375_6c00
    }
}

/// Packets can be sent on between interfaces with lower numbers.
pub const FAST_LINK_NUMBERS: usize = 1 << 14;

/// An interface, in the map [`FAST_LINKS`](crate::names::FAST_LINKS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastLink {
    /// Bytes of the longest IP packet that can be sent by it; 0 unless it is one of the fast path.
    pub mtu: u32,
    /// One of [`asks`].
    pub asks: u32,
}

/// About what comes in by an interface: whether somebody has to ask for the way that answers would go.
pub mod asks {
    /// Only where it may be from an address of this host.
    pub const SELDOM: u32 = 0;
    /// There must be one (`rp_filter` is loose).
    pub const ANY: u32 = 1;
    /// It must be this interface (`rp_filter` is strict).
    pub const SAME: u32 = 2;
}

const DOUBT_WORDS: usize = 64;

/// Which sources may be addresses of this host, in the map [`DOUBTS`](crate::names::DOUBTS): a bit for each hash of one. What
/// is not in it is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubts {
    bits: [u64; DOUBT_WORDS],
}

impl Default for Doubts {
    /// About none.
    fn default() -> Self {
        Self {
            bits: [0; DOUBT_WORDS],
        }
    }
}

impl Doubts {
    /// Of an address of IPv4 in the byte order of the network: the word, and the bit in it.
    #[inline(always)]
    const fn place(address: u32) -> (usize, u64) {
        let hash = address.wrapping_mul(0x9e37_79b1) >> 20;
        (hash as usize / 64 % DOUBT_WORDS, 1 << (hash % 64))
    }

    /// Has a doubt about an address.
    pub fn add(&mut self, address: u32) {
        let (word, bit) = Self::place(address);
        if let Some(bits) = self.bits.get_mut(word) {
            *bits |= bit;
        }
    }

    /// Whether there is a doubt about an address.
    #[inline(always)]
    #[must_use]
    pub fn about(&self, address: u32) -> bool {
        let (word, bit) = Self::place(address);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

/// Routes that the fast path remembers, on each core.
pub const ROUTES: usize = 256;

/// A route, in the map [`KNOWN_ROUTES`](crate::names::KNOWN_ROUTES): what was asked, and the answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnownRoute {
    /// All that an answer depends on, as the look-up reads it.
    pub question: [u64; 6],
    /// Addresses of Ethernet, as the look-up writes them: from, and to.
    pub hardware: [u32; 3],
    /// By which it leaves.
    pub interface: u32,
    /// Bytes of the longest packet that goes this way, as far as is known.
    pub fits: u32,
    /// When it was asked: some number that grows a few times a second.
    pub moment: u32,
}

/// Next hops that the fast path remembers, on each core.
pub const HOPS: usize = 256;

/// A next hop, in the map [`NEXT_HOPS`](crate::names::NEXT_HOPS), and when the kernel has last sent something to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// In the form of the look-up; of IPv4 the first word.
    pub address: [u32; 4],
    /// The interface that it is behind.
    pub interface: u32,
    /// The same as a [`KnownRoute`] has.
    pub moment: u32,
}

/// Address family of the app's socket, as in `AF_INET` and `AF_INET6`.
pub struct Family;

impl Family {
    /// `AF_INET`.
    pub const V4: u16 = 2;
    /// `AF_INET6`.
    pub const V6: u16 = 10;
}
