//! What a group is, as its section in the configuration says.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{check::Check, health::HealthRules};
use crate::{balance::Method, rule::ProxyHeader};

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where endpoints come from, in file order.
    pub members: Vec<Member>,
    /// How one is chosen.
    pub method: Method,
    /// When one is held for healthy.
    pub health: HealthRules,
    /// How endpoints are checked, if they are.
    pub check: Option<Check>,
    /// How many connections there may be.
    pub limits: Limits,
    /// The header that endpoints want before the first byte.
    pub send_proxy: Option<ProxyHeader>,
    /// Whether endpoints see the address of the client, and its port where that is free.
    pub keep_source: bool,
    /// Limit for reaching an endpoint, all attempts together.
    pub connect_timeout: Duration,
}

impl Settings {
    /// The addresses of endpoints that the configuration tells without a look-up.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.members
            .iter()
            .filter_map(|member| match &member.source {
                Source::Address(Address::Tcp(address)) => Some(*address),
                _ => None,
            })
    }

    /// Whether connections may go to where they were going.
    #[must_use]
    pub fn has_original(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.source == Source::Address(Address::Original))
    }

    /// What only the relay can do of what is wanted, in words for who wants to do without.
    #[must_use]
    pub fn needs_relay(&self) -> Option<&'static str> {
        let limits = &self.limits;
        if self.send_proxy.is_some() {
            return Some("`send_proxy`: only the relay can write a PROXY header");
        }
        if self.keep_source {
            return Some("`keep_source`: only the relay can connect from the address of a client");
        }
        if limits.total.or(limits.endpoint).or(limits.source).is_some() {
            return Some("`limits`: only the relay can have connections wait, or reset them");
        }
        if self.method.hashes() {
            return Some(
                "`balance`: the hook runs before there is a source address and port to hash",
            );
        }
        self.members.iter().find_map(|member| match &member.source {
            Source::Address(Address::Unix(_)) => {
                Some("an endpoint is a Unix socket: the app's is a TCP socket")
            }
            Source::Address(Address::Original) => {
                Some("`original` is no endpoint that can be checked or counted")
            }
            _ => None,
        })
    }
}

/// An entry in the list of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it stands for.
    pub source: Source,
    /// Its part of the connections.
    pub weight: u32,
}

/// What an entry in the list of endpoints stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// One endpoint.
    Address(Address),
    /// One endpoint for each address of a name, all at this port.
    Name {
        /// The host name.
        name: Arc<str>,
        /// The port.
        port: u16,
    },
    /// One endpoint for each address of each host that a name's SRV records list.
    Service(Arc<str>),
}

/// As in the configuration.
impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Name { name, port } => write!(formatter, "dns:{name}:{port}"),
            Self::Service(name) => write!(formatter, "srv:{name}"),
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// At a TCP port.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(PathBuf),
    /// Wherever the connection was going: as many endpoints as there are destinations, which is why it has no health.
    Original,
}

/// As in the configuration.
impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Original => formatter.write_str("original"),
        }
    }
}

/// How many connections there may be; none of the limits holds where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of the group.
    pub total: Option<u32>,
    /// Of each endpoint.
    pub endpoint: Option<u32>,
    /// Of each source address.
    pub source: Option<u32>,
    /// How many may wait.
    pub queue: u32,
    /// How long they wait.
    pub queue_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: None,
            endpoint: None,
            source: None,
            queue: 1024,
            queue_timeout: Duration::from_secs(5),
        }
    }
}

/// Addresses of both families that mean one host are one source.
pub(super) fn source_of(client: SocketAddr) -> IpAddr {
    client.ip().to_canonical()
}
