//! What a `[[gateway]]` rule is: which connections of other hosts that pass through this one it takes, and where they go.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{FailMode, Names, PathChoice, ReverseVia, Selector};

/// One `[[gateway]]` rule. The first in file order whose selectors hold decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Unique name, shown in logs, counters and close records.
    pub name: Arc<str>,
    /// Names of the interfaces that connections come in by; never empty.
    pub interface: BTreeSet<String>,
    /// Where connections come from.
    pub source: Selector<IpNet>,
    /// Where they go.
    pub dest: Selector<IpNet>,
    /// The ports there.
    pub port: Selector<RangeInclusive<u16>>,
    /// What becomes of them. [`ReverseVia::Direct`] has the kernel route them, [`ReverseVia::Original`] has the relay connect to where
    /// they go.
    pub via: ReverseVia,
    /// What becomes of those that ask for certain names instead.
    pub names: Option<Names>,
    /// Limit for the TCP connect to what is no named upstream.
    pub connect_timeout: Duration,
    /// Whether whoever is connected to sees the address of the client, and its port where that is free.
    pub keep_source: bool,
    /// What becomes of connections while the relay is dead, hung or cannot answer.
    pub on_relay_failure: FailMode,
    /// How relayed bytes are moved.
    pub path: PathChoice,
}

impl Gateway {
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
