//! What a `[[reverse]]` rule is: which connections that arrive at this host it takes, and where they go.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{FailMode, Names, PathChoice, Selector};

/// One `[[reverse]]` rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// Unique name, shown in logs, counters and close records.
    pub name: Arc<str>,
    /// What it takes; never empty. The most specific of all rules decides: see [`proxy_common::select()`].
    pub listen: Vec<Listen>,
    /// Where connections come from.
    pub source: Selector<IpNet>,
    /// Names of the interfaces that connections arrive by.
    pub interface: Selector<String>,
    /// What becomes of them.
    pub via: ReverseVia,
    /// What becomes of those that ask for certain names instead.
    pub names: Option<Names>,
    /// Limit for the TCP connect to what is no named upstream.
    pub connect_timeout: Duration,
    /// Senders whose connections begin with a PROXY header.
    pub accept_proxy: Vec<IpNet>,
    /// How the service is told who the client is, if it is.
    pub send_proxy: Option<ProxyHeader>,
    /// Whether whoever is connected to sees the address of the client, and its port where that is free.
    pub keep_source: bool,
    /// What becomes of connections while the relay is dead, hung or cannot answer.
    pub on_relay_failure: FailMode,
    /// How relayed bytes are moved.
    pub path: PathChoice,
    /// Whether the kernel is to give connections to the service's own listener, as long as that is known; they are relayed
    /// otherwise.
    pub steer: bool,
}

impl Reverse {
    /// The service whose listener gets the connections.
    #[must_use]
    pub const fn steered_to(&self) -> Option<SocketAddr> {
        match self.via {
            ReverseVia::Address(to) if self.steer => Some(to),
            _ => None,
        }
    }

    /// Whether the relay takes part: also to refuse by name.
    #[must_use]
    pub const fn is_relayed(&self) -> bool {
        self.via.is_relayed() || self.names.is_some()
    }

    /// All that may become of its connections.
    pub fn vias(&self) -> impl Iterator<Item = &ReverseVia> {
        std::iter::once(&self.via).chain(self.names.iter().flat_map(Names::vias))
    }
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary, with more than addresses.
    V2,
}

impl ProxyHeader {
    /// Both with their names in configurations.
    pub const ALL: [(&'static str, Self); 2] = [("v1", Self::V1), ("v2", Self::V2)];
}

/// Addresses of this host and ports of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The addresses; all of a family for a wildcard.
    pub net: IpNet,
    /// The ports.
    pub ports: RangeInclusive<u16>,
}

/// What becomes of a connection that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReverseVia {
    /// The kernel gives it to whoever listens; the relay never sees it.
    Direct,
    /// It is refused.
    Refuse,
    /// The relay takes it and connects to the same address and port, where the service listens.
    Original,
    /// The relay takes it and connects to this address.
    Address(SocketAddr),
    /// The relay takes it and dials the named upstream.
    Upstream(Arc<str>),
}

impl ReverseVia {
    /// Whether the relay takes part.
    #[must_use]
    pub const fn is_relayed(&self) -> bool {
        !matches!(self, Self::Direct | Self::Refuse)
    }
}
