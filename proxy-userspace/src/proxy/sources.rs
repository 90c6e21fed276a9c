//! Servers that see the addresses of clients (`keep_source`), and what has their answers come back here.
//!
//! What is set up stays until the end, also when a reload has no use for it any more: connections may be open that need it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use thiserror::Error;

use super::{Proxy, ProxyError, Rules};
use crate::{
    delivery::{Delivery, DeliveryError, Place, Places, Want},
    group::{Address, Groups, SettingsByName},
    intercept::{InterceptError, Interceptor},
    rule::{ReverseVia, Roles},
    socket,
    upstream::{Foreign, Return},
};

/// Why servers cannot be shown the addresses of clients.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The threads that would connect may not any more.
    #[error(
        "rules with `keep_source` need relay threads with CAP_NET_RAW, which were started without since no rule had it; start \
         culvert anew, or another one with --takeover"
    )]
    Threads,
    /// Services of this host answer the client itself.
    #[error("{0}")]
    Answers(Unanswered),
    /// No route leads to a server, so that it is not known by which interface it answers.
    #[error("no route leads to {0}")]
    Nowhere(SocketAddr),
    /// The hook on answers.
    #[error("answers of other hosts to the addresses of clients cannot be told")]
    Intercept(#[from] InterceptError),
    /// The routing rules.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

/// A setting that is missing for services of this host which listen on other addresses than those of loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "`keep_source` to services on addresses of this host needs `sysctl -w net.ipv4.tcp_fwmark_accept=1`: answers go to the client \
     itself otherwise, past the relay; or have the service listen on loopback (`via = \"127.0.0.1:8080\"`), or steer to it"
)]
pub struct Unanswered;

/// Servers that are to see the addresses of clients, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    addresses: BTreeSet<SocketAddr>,
    /// Whether any other server may be one, since it is the one that a client wants to reach.
    anywhere: bool,
}

impl Shown {
    /// By the rules.
    #[must_use]
    pub fn of(roles: Roles<'_>, groups: &SettingsByName) -> Self {
        let mut shown = Self::default();
        for (keeps, via) in roles.kept() {
            match via {
                // What the relay refuses by name.
                ReverseVia::Direct | ReverseVia::Refuse => {}
                ReverseVia::Original => shown.anywhere |= keeps,
                ReverseVia::Address(to) => shown.addresses.extend(keeps.then_some(*to)),
                ReverseVia::Upstream(name) => match groups.get(name) {
                    Some(group) if group.keep_source || keeps => {
                        shown.addresses.extend(group.addresses());
                        shown.anywhere |= group.has_original();
                    }
                    Some(_) => {}
                    None => shown.anywhere |= keeps,
                },
            }
        }
        shown
    }

    /// Whether rules want any server to, named or not.
    #[must_use]
    pub fn are_wanted(roles: Roles<'_>, groups: &SettingsByName) -> bool {
        let keeps = |name| groups.get(name).is_some_and(|group| group.keep_source);
        roles.kept().any(|(is_kept, via)| {
            is_kept || matches!(via, ReverseVia::Upstream(name) if keeps(name))
        })
    }

    /// By names that have been resolved.
    fn add_resolved(&mut self, roles: Roles<'_>, groups: &Groups) {
        for (keeps, via) in roles.kept() {
            if let ReverseVia::Upstream(name) = via
                && let Some(group) = groups.get(name)
                && (keeps || group.keeps_source())
            {
                let addresses = group.addresses();
                self.addresses
                    .extend(addresses.into_iter().filter_map(|address| match address {
                        Address::Tcp(address) => Some(address),
                        Address::Unix(_) | Address::Original => None,
                    }));
            }
        }
    }
}

/// What brings answers back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returns {
    /// Packets that are to be delivered here.
    pub wants: BTreeSet<Want>,
    /// Servers on other hosts, and by which interface they answer, by number and name.
    pub remote: BTreeMap<SocketAddr, (u32, Arc<str>)>,
    /// Servers that no route leads to.
    pub nowhere: BTreeSet<SocketAddr>,
}

impl Returns {
    /// Of servers where they are now.
    ///
    /// # Errors
    /// When the kernel does not tell where they are.
    pub fn of(shown: &Shown) -> Result<Self, DeliveryError> {
        let mut returns = Self::default();
        let mut places = Places::default();
        for &from in &shown.addresses {
            match places.of(from.ip())? {
                Place::Loopback => {
                    returns.wants.insert(Want::Replies { from });
                }
                Place::Local => {
                    returns.wants.insert(local());
                }
                Place::Remote(number) => match socket::interface_name(number) {
                    Some(name) => {
                        let interface: Arc<str> = name.into();
                        returns.wants.insert(Want::Marked {
                            interface: Arc::clone(&interface),
                        });
                        returns.remote.insert(from, (number, interface));
                    }
                    None => {
                        returns.nowhere.insert(from);
                    }
                },
                Place::Nowhere => {
                    returns.nowhere.insert(from);
                }
            }
        }
        Ok(returns)
    }

    /// What of the host's settings is missing for them.
    #[must_use]
    pub fn lacks(&self) -> Option<Unanswered> {
        let inherited = || {
            let read = fs::read_to_string("/proc/sys/net/ipv4/tcp_fwmark_accept");
            read.is_ok_and(|value| value.trim() != "0")
        };
        (self.wants.contains(&local()) && !inherited()).then_some(Unanswered)
    }
}

/// Answers of services of this host: to what carries our mark, which their sockets inherit.
fn local() -> Want {
    Want::Marked {
        interface: Arc::from("lo"),
    }
}

/// What a proxy has set up.
#[derive(Default)]
pub(super) struct Sources {
    /// For the workers, if they may connect from addresses of others.
    pub(super) foreign: Option<Arc<Foreign>>,
    delivery: Option<Delivery>,
    wants: BTreeSet<Want>,
    /// What was wrong with endpoints when they were looked at last.
    failure: Option<String>,
}

impl Proxy {
    /// Has answers of servers that see the addresses of clients come back here.
    pub(super) fn provide_sources(
        &mut self,
        policy: &Rules<'_>,
        groups: &Groups,
    ) -> Result<(), ProxyError> {
        let mut shown = Shown::of(policy.roles, policy.groups);
        shown.add_resolved(policy.roles, groups);
        match self.sources.show(&mut self.interceptor, &shown, true) {
            // There may be one later; it is looked for.
            Ok(()) | Err(SourceError::Nowhere(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks where servers are by now that see the addresses of clients: names stand for others, and addresses move.
    pub fn follow_sources(&mut self, policy: &Rules<'_>) {
        let mut shown = Shown::of(policy.roles, policy.groups);
        shown.add_resolved(policy.roles, &self.groups);
        let failure = self
            .sources
            .show(&mut self.interceptor, &shown, false)
            .err();
        let text = failure.as_ref().map(ToString::to_string);
        if text != self.sources.failure
            && let Some(error) = failure
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "some endpoints cannot be connected to");
        }
        self.sources.failure = text;
    }
}

impl SourceError {
    /// Whether this host, its kernel, or these privileges lack something.
    pub(super) const fn is_missing_feature(&self) -> bool {
        match self {
            Self::Answers(_) => true,
            Self::Intercept(error) => error.is_missing_feature(),
            Self::Threads | Self::Nowhere(_) | Self::Delivery(_) => false,
        }
    }
}

impl Sources {
    pub(super) fn new(are_wanted: bool) -> Self {
        Self {
            foreign: are_wanted.then(Arc::default),
            ..Self::default()
        }
    }

    /// Sets up what servers need. Unless all of them have to do, those that cannot be shown clients do not keep others from it.
    fn show(
        &mut self,
        interceptor: &mut Interceptor,
        shown: &Shown,
        all: bool,
    ) -> Result<(), SourceError> {
        if *shown == Shown::default() {
            return Ok(());
        }
        let foreign = self.foreign.as_ref().ok_or(SourceError::Threads)?;
        let returns = Returns::of(shown)?;
        let unanswered = returns.lacks().map(SourceError::Answers);
        let unanswered = match unanswered {
            Some(unanswered) if all => return Err(unanswered),
            unanswered => unanswered,
        };
        let nowhere = returns.nowhere.first().copied().map(SourceError::Nowhere);
        let lacking = unanswered.or(nowhere);
        let wants: BTreeSet<_> = self.wants.union(&returns.wants).cloned().collect();
        if wants != self.wants || self.delivery.is_none() {
            let listed: Vec<_> = wants.iter().cloned().collect();
            match &mut self.delivery {
                Some(delivery) => delivery.change(&listed)?,
                none => *none = Some(Delivery::new(&listed)?),
            }
            self.wants = wants;
        }
        foreign.set(Return {
            mark: self.delivery.as_ref().map(Delivery::mark),
            ephemeral: ephemeral().unwrap_or(Return::default().ephemeral),
        });
        if let (Some(delivery), false) = (&self.delivery, returns.remote.is_empty()) {
            let interfaces = returns.remote.values().map(|(number, _)| *number);
            interceptor.attach_returns(delivery.mark(), &interfaces.collect())?;
        }
        lacking.map_or(Ok(()), Err)
    }
}

/// The ports that the kernel chooses from in this network namespace.
fn ephemeral() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let ports: Vec<u16> = text
        .split_ascii_whitespace()
        .filter_map(|port| port.parse().ok())
        .collect();
    match *ports.as_slice() {
        [first, last] => Ok(first..=last),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
