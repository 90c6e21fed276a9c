//! What a rule is: which connections it selects and what becomes of them.
//!
//! Plain, validated types. `config` builds them from the file, `policy` compiles them into kernel tables,
//! `connection` reads the action of the rule the kernel chose. Nothing here knows TOML, maps or sockets.

mod gateway;
mod name;
mod reverse;
mod router;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use gateway::Gateway;
pub use name::{Kind, Limits, MOST_PEEKED, Name, NameEntry, Names, Pattern};
pub use reverse::{Listen, ProxyHeader, Reverse, ReverseVia};
pub use router::Router;

/// The rules of every role, each in file order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles<'a> {
    /// Those for what processes of this host open.
    pub forward: &'a [Rule],
    /// Those for what arrives at this host.
    pub reverse: &'a [Reverse],
    /// Those for what passes through.
    pub gateway: &'a [Gateway],
}

impl<'a> Roles<'a> {
    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.forward.len() + self.reverse.len() + self.gateway.len()
    }

    /// Where connections may go that were not opened on this host, each with whether their rule wants the server to see who the
    /// client is.
    pub fn kept(self) -> impl Iterator<Item = (bool, &'a ReverseVia)> {
        let arrivals = self.reverse.iter().filter(|rule| rule.is_relayed());
        let arrivals = arrivals.flat_map(|rule| rule.vias().map(|via| (rule.keep_source, via)));
        let transits = self.gateway.iter().filter(|rule| rule.is_relayed());
        let transits = transits.flat_map(|rule| rule.vias().map(|via| (rule.keep_source, via)));
        arrivals.chain(transits)
    }
}

impl<'a> From<&'a [Rule]> for Roles<'a> {
    fn from(forward: &'a [Rule]) -> Self {
        Self {
            forward,
            ..Self::default()
        }
    }
}

impl<'a> From<&'a [Gateway]> for Roles<'a> {
    fn from(gateway: &'a [Gateway]) -> Self {
        Self {
            gateway,
            ..Self::default()
        }
    }
}

impl<'a> From<&'a [Reverse]> for Roles<'a> {
    fn from(reverse: &'a [Reverse]) -> Self {
        Self {
            reverse,
            ..Self::default()
        }
    }
}

/// One `[[forward]]` rule. The first rule in file order whose [`Match`] holds decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, shown in logs, counters and close records.
    pub name: Arc<str>,
    /// Which connections the rule selects.
    pub matches: Match,
    /// What becomes of them.
    pub via: Via,
    /// What becomes of them while the relay is dead, hung or cannot answer.
    pub on_relay_failure: FailMode,
    /// How relayed bytes are moved.
    pub path: PathChoice,
    /// Whether the hook itself is to choose an endpoint of the group, as long as there is one for the connection; it is relayed
    /// otherwise.
    pub rewrite: bool,
    /// Where connections of containers are made from.
    pub from: Departure,
}

impl Rule {
    /// Whether listeners are opened in the network namespaces of those whom the rule selects: it names containers, and relays.
    #[must_use]
    pub fn enters_namespaces(&self) -> bool {
        let mut cgroups = self.matches.cgroup.include.iter();
        matches!(self.via, Via::Upstream(_)) && cgroups.any(|it| container_in(it).is_some())
    }

    /// The group whose endpoints the hook chooses from.
    #[must_use]
    pub fn rewritten_to(&self) -> Option<&Arc<str>> {
        match &self.via {
            Via::Upstream(name) if self.rewrite => Some(name),
            _ => None,
        }
    }
}

/// The selectors of a rule. They are `ANDed`; an empty [`Selector`] selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Subtrees of the cgroup v2 hierarchy, by path below its root, by systemd unit name or by container ([`of_container`]).
    pub cgroup: Selector<String>,
    /// Executables, by absolute path in the daemon's mount namespace.
    pub exe: Selector<PathBuf>,
    /// Real user ids of the connecting task.
    pub uid: Selector<RangeInclusive<u32>>,
    /// Real group ids of the connecting task.
    pub gid: Selector<RangeInclusive<u32>>,
    /// Processes, each with the children it forks from now on.
    pub pid: Selector<u32>,
    /// Destination prefixes. IPv4-mapped IPv6 destinations count as IPv4. Destinations on loopback stay direct
    /// unless one of these names them: see [`is_loopback`].
    pub dest: Selector<IpNet>,
    /// Destination ports.
    pub port: Selector<RangeInclusive<u16>>,
}

impl Match {
    /// Whether the cgroups are those of containers.
    #[must_use]
    pub fn names_containers(&self) -> bool {
        let mut cgroups = self.cgroup.include.iter().chain(&self.cgroup.exclude);
        cgroups.any(|it| container_in(it).is_some())
    }
}

/// What stays on this host; `connect()` takes the unspecified addresses for loopback, too.
pub const LOOPBACK: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 32)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
];

/// Whether a prefix lies within [`LOOPBACK`], so that a rule with it names loopback. `0.0.0.0/0` does not: it means
/// the network, and local resolvers and databases live on loopback.
#[must_use]
pub fn is_loopback(prefix: &IpNet) -> bool {
    LOOPBACK.iter().any(|area| area.contains(prefix))
}

/// Whether a value of [`Match::cgroup`] is a systemd unit name rather than a path: without a slash and with the
/// ending of a unit that has a cgroup.
#[must_use]
pub fn is_unit_name(cgroup: &str) -> bool {
    let suffixes = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
    !cgroup.contains('/') && suffixes.iter().any(|suffix| cgroup.ends_with(suffix))
}

/// How a value of [`Match::cgroup`] begins that stands for the cgroup of a container.
const CONTAINER: &str = "container:";

/// What a container is called, as a value of [`Match::cgroup`].
#[must_use]
pub fn of_container(name: &str) -> String {
    format!("{CONTAINER}{name}")
}

/// The container that a value of [`Match::cgroup`] stands for.
#[must_use]
pub fn container_in(cgroup: &str) -> Option<&str> {
    cgroup.strip_prefix(CONTAINER)
}

/// Whether a value of [`Match::cgroup`] is a path, and not the name of something that is wherever the system puts it.
#[must_use]
pub fn is_cgroup_path(cgroup: &str) -> bool {
    !is_unit_name(cgroup) && container_in(cgroup).is_none()
}

/// A list of alternatives and of exclusions: a value is selected when some `include` holds (or there is none)
/// and no `exclude` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector<T> {
    /// Alternatives; empty means any value.
    pub include: Vec<T>,
    /// Exclusions, written with a leading `!`; they win over `include`.
    pub exclude: Vec<T>,
}

impl<T> Default for Selector<T> {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            exclude: Vec::new(),
        }
    }
}

impl<T> Selector<T> {
    /// Whether the selector selects every value.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// How many alternatives and exclusions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.include.len() + self.exclude.len()
    }

    /// Whether a value is selected, given how one alternative is compared with it.
    pub fn selects(&self, mut holds: impl FnMut(&T) -> bool) -> bool {
        (self.include.is_empty() || self.include.iter().any(&mut holds))
            && !self.exclude.iter().any(holds)
    }
}

/// What becomes of a selected connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// The kernel connects the app's own socket; the relay never sees it.
    Direct,
    /// `connect()` fails.
    Refuse,
    /// The relay takes it and dials the named upstream.
    Upstream(Arc<str>),
}

/// Which network namespace connections of containers are made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Departure {
    /// The daemon's. Only what a container opens to its own loopback addresses is made from where it is.
    #[default]
    Host,
    /// The container's.
    Container,
}

/// What happens to connections of a rule that the relay cannot answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailMode {
    /// They go to their destination without the relay.
    #[default]
    Direct,
    /// `connect()` fails, also after the daemon was killed.
    Refuse,
}

/// When the paths are measured for rules that leave the choice to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calibrate {
    /// At the start and at each reload, in the background: half a second of one core.
    #[default]
    AtStart,
    /// Only when a connection has moved so much that it is worth it.
    OnDemand,
}

/// How programs are attached to the ingress of interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IngressHook {
    /// By links (tcx) where the kernel has them, as filters elsewhere.
    #[default]
    Auto,
    /// As filters of `tc` on the queueing discipline `clsact`, which other tools for that see.
    Clsact,
}

/// How relayed bytes are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathChoice {
    /// The cheapest path that is proven safe here, of those below but the shortcut.
    #[default]
    Auto,
    /// As [`PathChoice::Auto`], and the shortcut as long as the app exchanges messages.
    AutoOrShortcut,
    /// Through a user-space buffer.
    Copy,
    /// Through a kernel pipe, where both sides are plain TCP.
    Splice,
    /// Redirected in the kernel from socket to socket, where both sides are plain TCP.
    Sockmap,
    /// The app's own socket sends straight into the upstream socket, where this kernel is proven to keep what apps rely on.
    Shortcut,
    /// As [`PathChoice::Shortcut`], for apps that never ask how many bytes wait (`FIONREAD`), which some kernels answer by 0.
    ShortcutWithoutFionread,
    /// As [`PathChoice::ShortcutWithoutFionread`], and small replies go straight into the app's receive queue.
    ShortcutBothWays,
}

impl PathChoice {
    /// Whether connections may take the shortcut.
    #[must_use]
    pub const fn is_shortcut(self) -> bool {
        matches!(
            self,
            Self::AutoOrShortcut
                | Self::Shortcut
                | Self::ShortcutWithoutFionread
                | Self::ShortcutBothWays
        )
    }

    /// Whether we choose the path.
    #[must_use]
    pub const fn is_auto(self) -> bool {
        matches!(self, Self::Auto | Self::AutoOrShortcut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_within_loopback_name_it() {
        let names = |prefix: &str| is_loopback(&prefix.parse().unwrap());
        assert!(
            [
                "127.0.0.0/8",
                "127.0.0.53/32",
                "0.0.0.0/32",
                "::/128",
                "::1/128"
            ]
            .into_iter()
            .all(names)
        );
        let wider = [
            "0.0.0.0/0",
            "126.0.0.0/7",
            "128.0.0.0/8",
            "::/0",
            "::/127",
            "::2/128",
        ];
        assert!(!wider.into_iter().any(names));
    }

    #[test]
    fn units_are_told_from_paths() {
        assert!(
            ["nginx.service", "run-1.scope", "user.slice"]
                .into_iter()
                .all(is_unit_name)
        );
        assert!(
            !["system.slice/nginx.service", "docker", "a.timer"]
                .into_iter()
                .any(is_unit_name)
        );
    }
}
